//! Why a verb ended early, and how that is told: a line for people, an object for scripts.

use serde_json::{Value, json};

use super::args::Output;
use crate::failure::{Effect, Failure, Reason};

/// See the module.
#[derive(Debug)]
pub(crate) enum Error {
    /// A call failed: the table of [`crate::failure`] says more.
    Call(Failure),
    /// Anything else, for people.
    Other(String),
    /// Nobody reads standard output any more, as in `polyraft group list | head`.
    OutputClosed,
    /// Ctrl-C, or the like, before the end.
    Interrupted,
}

impl Error {
    /// What was typed cannot be meant.
    pub(crate) fn bad_request(why: impl Into<String>) -> Self {
        Self::Call(Failure::new(Reason::BadRequest, why))
    }

    /// As a shell knows programs that ended by a signal: 128 and its number.
    pub(super) const fn exit_code(&self) -> u8 {
        match self {
            Self::Call(_) | Self::Other(_) => 1,
            Self::Interrupted => 130,
            Self::OutputClosed => 141,
        }
    }

    /// What standard error gets to see, if anything.
    pub(super) fn shown(&self, output: Output) -> Option<String> {
        match (self, output) {
            (Self::OutputClosed, _) => None,
            (_, Output::Json) => Some(self.json().to_string()),
            (Self::Interrupted, Output::Table) => Some("interrupted before the end".to_owned()),
            (Self::Other(message), Output::Table) => Some(format!("error: {message}")),
            (Self::Call(failure), Output::Table) => {
                let effect = match failure.effect {
                    Effect::None => "",
                    Effect::Unknown => " (effect unknown: it may have happened, or may yet)",
                };
                Some(format!("error: {}{effect}", failure.message))
            }
        }
    }

    fn json(&self) -> Value {
        let object = |message: &str, reason: &str, effect: Option<&str>| json!({ "error": message, "reason": reason, "effect": effect });
        match self {
            Self::Call(failure) => {
                let effect = match failure.effect {
                    Effect::None => "none",
                    Effect::Unknown => "unknown",
                };
                object(&failure.message, failure.reason.word(), Some(effect))
            }
            Self::Other(message) => object(message, "failed", None),
            Self::Interrupted => object("interrupted before the end", "interrupted", None),
            Self::OutputClosed => object("standard output is closed", "output-closed", None),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Call(failure)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self::Other(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self::Other(message.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_scripts_hear_of_the_effect() {
        let failure = Failure::new(Reason::Timeout, "no answer");
        let none = Error::from(failure.clone());
        let unknown = Error::from(failure.of_unknown_effect());
        let text = |error: &Error| error.shown(Output::Table).expect("a line");
        assert_eq!(text(&none), "error: no answer");
        assert!(text(&unknown).contains("effect unknown"));
        let json = |error: &Error| -> Value {
            serde_json::from_str(&error.shown(Output::Json).expect("a line")).expect("JSON")
        };
        assert_eq!(
            json(&none),
            json!({ "error": "no answer", "reason": "timeout", "effect": "none" })
        );
        assert_eq!(json(&unknown)["effect"], "unknown");
        assert_eq!(json(&Error::from("lost"))["reason"], "failed");
    }

    #[test]
    fn a_closed_output_is_no_news() {
        assert_eq!(Error::OutputClosed.shown(Output::Table), None);
        assert_eq!(Error::OutputClosed.shown(Output::Json), None);
        assert_eq!(Error::OutputClosed.exit_code(), 141);
    }
}
