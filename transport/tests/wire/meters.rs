//! What is counted for the `metrics` facade.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::{Lane, Transport};

use crate::support::{CLUSTER, append, connect, eventually, heartbeat, node};

/// Keeps every value by `name{label=value,…}`.
#[derive(Default)]
struct Values {
    all: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    described: Mutex<Vec<String>>,
}

impl Values {
    fn cell(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.all.lock().entry(name).or_default())
    }

    fn counter(&self, name: &str) -> u64 {
        let all = self.all.lock();
        let name = format!("polyraft_transport_{name}");
        all.get(&name).map_or(0, |cell| cell.load(Ordering::SeqCst))
    }

    fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.counter(name))
    }
}

impl Recorder for Values {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().push(key.as_str().to_owned());
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.described.lock().push(key.as_str().to_owned());
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

// On one thread, so that the recorder of this thread is that of every task.
#[tokio::test(flavor = "current_thread")]
async fn what_goes_over_the_wire_is_counted() {
    let values = Values::default();
    let _installed = metrics::set_default_local_recorder(&values);
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    assert!(values.gauge("connected{peer=2}") > 0.5);
    let messages = (0..10).map(|group| append(group, 100)).collect();
    one.transport.send(StoreId(2), Lane::Append, messages);
    assert!(values.gauge("queue_bytes{peer=2,lane=append}") > 1000.0);
    one.transport
        .send(StoreId(2), Lane::Control, vec![heartbeat(1, 1)]);
    eventually("arrived", || two.received().len() == 11).await;
    for (name, expected) in [
        ("frames_sent_total{peer=2,lane=append}", 1),
        ("messages_sent_total{peer=2,lane=append}", 10),
        ("messages_sent_total{peer=2,lane=control}", 1),
        ("messages_received_total{peer=1,lane=append}", 10),
        ("messages_received_total{peer=1,lane=control}", 1),
        ("frames_received_total{peer=1,lane=append}", 1),
        ("messages_dropped_total{peer=2,lane=append}", 0),
        ("refused_total{what=frame}", 0),
    ] {
        assert_eq!(values.counter(name), expected, "{name}");
    }
    let sent = values.counter("bytes_sent_total{peer=2,lane=append}");
    assert!((1000..2000).contains(&sent), "{sent}");
    let received = values.counter("bytes_received_total{peer=1,lane=append}");
    assert_eq!(received, sent);
    assert!(values.gauge("queue_bytes{peer=2,lane=append}").abs() < 0.5);

    let stranger = node(8, 3, 1).await;
    connect(&one, &stranger, 3);
    eventually("refused", || {
        values.counter("refused_total{what=stream}") > 0
    })
    .await;
    eventually("tried again", || {
        values.counter("reconnects_total{peer=3,lane=control}") > 1
    })
    .await;
    two.transport.shutdown();
    eventually("down", || values.gauge("connected{peer=2}") < 0.5).await;

    // Whatever is counted has an explanation.
    let described = values.described.lock().clone();
    for name in values.all.lock().keys() {
        let name = name.split('{').next().unwrap_or(name);
        assert!(described.iter().any(|known| known == name), "{name}");
    }
}
