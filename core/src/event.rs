//! What happened, as values: the core's only "logging".

/// Something worth a log line or a metric. (Filled in by the state machine's author.)
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {}
