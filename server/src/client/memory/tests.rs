//! A client among stores that are played.

use std::collections::VecDeque;

use bytes::Bytes;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;
use crate::client::ScanOptions;
use crate::proto::kv::kv_server::{Kv, KvServer};
use crate::proto::kv::{DeleteRequest, DeleteResponse, PutRequest, PutResponse, Range, ScanPart};

/// What a store is going to answer.
type Script = VecDeque<Result<Vec<Range>, Failure>>;

/// What a store answers, once each, and the hints that it was shown.
#[derive(Clone, Default)]
struct Played {
    answers: Arc<Mutex<Script>>,
    hints: Arc<Mutex<Vec<Option<RangeHint>>>>,
}

impl Played {
    fn will(&self, answer: Result<Vec<Range>, Failure>) {
        self.answers.lock().push_back(answer);
    }

    /// The hints since the last question.
    fn asked(&self) -> Vec<(u64, u64, u64)> {
        let hints = std::mem::take(&mut *self.hints.lock());
        let fields = |hint: Option<RangeHint>| {
            let hint = hint.expect("a client says what it believes");
            (hint.group, hint.generation, hint.leader_store)
        };
        hints.into_iter().map(fields).collect()
    }

    fn answer(&self, hint: Option<RangeHint>) -> Result<ResponseHeader, Status> {
        self.hints.lock().push(hint);
        let answer = self.answers.lock().pop_front();
        let ranges = answer.expect("it was told what to answer")?;
        Ok(ResponseHeader {
            ranges,
            ..ResponseHeader::default()
        })
    }
}

#[tonic::async_trait]
impl Kv for Played {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let header = self.answer(request.into_inner().hint)?;
        Ok(Response::new(GetResponse {
            value: None,
            header: Some(header),
        }))
    }

    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let header = self.answer(request.into_inner().hint)?;
        Ok(Response::new(WriteResponse {
            applied: true,
            header: Some(header),
        }))
    }

    /// A page that ends at "m".
    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        let request = request.into_inner();
        let header = self.answer(request.hint)?;
        let part = ScanPart {
            header: Some(header),
            ..ScanPart::default()
        };
        Ok(Response::new(ScanResponse {
            pairs: Vec::new(),
            parts: vec![part],
            next: (request.start < "m").then(|| Bytes::from("m")),
        }))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}

/// A store that listens until it is dropped.
struct Store {
    played: Played,
    address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Store {
    fn start() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address"));
        let incoming = incoming.expect("a port");
        let address = incoming.local_addr().expect("an address").to_string();
        let played = Played::default();
        let service = KvServer::new(played.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            server
                .serve_with_incoming(incoming)
                .await
                .expect("it serves");
        });
        Self {
            played,
            address,
            task,
        }
    }

    /// It listens no more.
    async fn stop(&mut self) {
        self.task.abort();
        let _ended = (&mut self.task).await;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn range(group: u64, generation: u64, start: &str, end: &str, leader: (u64, &str)) -> Range {
    Range {
        group,
        start: Bytes::copy_from_slice(start.as_bytes()),
        end: (!end.is_empty()).then(|| Bytes::copy_from_slice(end.as_bytes())),
        generation,
        membership_epoch: 1,
        stores: vec![1, 2],
        leader_store: leader.0,
        leader_address: leader.1.to_owned(),
    }
}

fn client(store: &Store) -> Client {
    let endpoints = [store.address.clone()];
    Client::new(&endpoints, Duration::from_secs(30)).expect("a client")
}

async fn get(client: &Client, key: &'static str) -> Result<GetResponse, Failure> {
    client
        .get(Bytes::from_static(key.as_bytes()), false, 0)
        .await
}

#[tokio::test]
async fn what_is_told_is_kept_in_mind_and_the_leader_asked_straight() {
    let (first, second) = (Store::start(), Store::start());
    let client = client(&first);
    let leader = (2, &*second.address);
    first.played.will(Ok(vec![range(7, 3, "", "m", leader)]));
    get(&client, "a").await.expect("an answer");
    assert_eq!(
        first.played.asked(),
        [(0, 0, 0)],
        "it knows nothing and says so"
    );
    // Nothing was news this time.
    second.played.will(Ok(Vec::new()));
    get(&client, "b").await.expect("an answer");
    assert_eq!(second.played.asked(), [(7, 3, 2)]);
    // Of another key nothing is known.
    first.played.will(Ok(Vec::new()));
    get(&client, "x").await.expect("an answer");
    assert_eq!(first.played.asked(), [(0, 0, 0)]);
    // A group that is named, and a read of what one store has, go where they are sent.
    first.played.will(Ok(Vec::new()));
    let stale = client.get(Bytes::from("a"), true, 0).await;
    stale.expect("an answer");
    assert_eq!(*first.played.hints.lock(), [None]);
}

#[tokio::test]
async fn a_range_that_changed_is_followed_by_what_the_refusal_says() {
    let (first, second) = (Store::start(), Store::start());
    let client = client(&first);
    let (one, two) = ((1, &*first.address), (2, &*second.address));
    first.played.will(Ok(vec![range(7, 3, "", "", one)]));
    get(&client, "a").await.expect("an answer");
    // It was split at "m", and the right half is led elsewhere.
    first.played.will(Err(Failure {
        ranges: vec![range(8, 4, "m", "", two), range(7, 4, "", "m", one)],
        ..Failure::new(Reason::RangeChanged, "it was split")
    }));
    second.played.will(Ok(Vec::new()));
    get(&client, "x").await.expect("an answer");
    assert_eq!(first.played.asked(), [(0, 0, 0), (7, 3, 1)]);
    assert_eq!(second.played.asked(), [(8, 4, 2)]);
    let groups = ["a", "x"].map(|key| client.route_of(key.as_bytes()).map(|route| route.group));
    assert_eq!(groups, [Some(7), Some(8)]);
    // Late news of what was before the split change nothing.
    second.played.will(Ok(vec![range(7, 3, "", "", one)]));
    get(&client, "y").await.expect("an answer");
    let route = client.route_of(b"y").expect("a route");
    assert_eq!((route.group, route.generation), (8, 4));
}

#[tokio::test]
async fn a_leader_that_is_gone_is_found_again_by_the_endpoints() {
    let (first, mut second) = (Store::start(), Store::start());
    let client = client(&first);
    let news = || vec![range(7, 3, "", "", (2, &*second.address))];
    first.played.will(Ok(news()));
    get(&client, "a").await.expect("an answer");
    let news = news();
    second.stop().await;
    first.played.will(Ok(Vec::new()));
    get(&client, "a").await.expect("an answer");
    assert_eq!(
        first.played.asked(),
        [(0, 0, 0), (7, 3, 0)],
        "the leader is unknown"
    );
    // It is named again, but there was no way to it a moment ago.
    first.played.will(Ok(news));
    get(&client, "a").await.expect("an answer");
    first.played.will(Ok(Vec::new()));
    get(&client, "a").await.expect("an answer");
    assert_eq!(first.played.asked(), [(7, 3, 0), (7, 3, 2)]);
}

/// A write may have had its effect at a leader that breaks: it is not sent again by itself.
#[tokio::test]
async fn a_write_that_is_in_doubt_is_not_sent_elsewhere() {
    let (first, second) = (Store::start(), Store::start());
    let client = client(&first);
    first
        .played
        .will(Ok(vec![range(7, 3, "", "", (2, &second.address))]));
    get(&client, "a").await.expect("an answer");
    let doubt = Failure::new(Reason::Ambiguous, "who knows").of_unknown_effect();
    second.played.will(Err(doubt));
    let put = client.put(Bytes::from("a"), None, 0).await;
    assert_eq!(put.expect_err("nobody knows").reason, Reason::Ambiguous);
    let refused = Failure::new(Reason::NotLeader, "not here");
    first
        .played
        .will(Ok(vec![range(7, 3, "", "", (2, &second.address))]));
    second.played.will(Err(refused));
    get(&client, "a").await.expect("an answer");
    first.played.will(Ok(Vec::new()));
    client
        .put(Bytes::from("a"), None, 0)
        .await
        .expect("sent again: it had no effect");
}

#[tokio::test]
async fn each_page_of_a_scan_goes_to_who_leads_where_it_begins() {
    let (first, second) = (Store::start(), Store::start());
    let client = client(&first);
    first.played.will(Ok(vec![
        range(7, 3, "", "m", (1, &first.address)),
        range(8, 3, "m", "", (2, &second.address)),
    ]));
    second.played.will(Ok(Vec::new()));
    let mut scan = client.scan(ScanOptions::default());
    let mut pages = 0;
    while scan.next_page().await.expect("a page").is_some() {
        pages += 1;
    }
    assert_eq!(pages, 2);
    assert_eq!(first.played.asked(), [(0, 0, 0)]);
    assert_eq!(second.played.asked(), [(8, 3, 2)]);
}
