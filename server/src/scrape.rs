//! `GET /metrics` for Prometheus, on an address of its own (`--metrics-listen`).
//!
//! HTTP in the little that this needs: one request per connection, its head bounded in bytes and time,
//! few connections at once. A scraper that hangs or floods costs nothing but itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::server::Server;

/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 8 << 10;
/// How long a request and its answer may take.
const BOUND: Duration = Duration::from_secs(5);
/// Connections that are answered at the same time; the others wait.
const CONNECTIONS: usize = 8;
/// Samples of histograms are summed up so often, or they would pile up while nobody asks.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// An address that is bound, and the recorder that all metrics of this process go to.
pub(crate) struct Scrape {
    listener: TcpListener,
    recorder: PrometheusHandle,
}

impl Scrape {
    /// Listens and installs the recorder. Every metric carries `store` as a label.
    ///
    /// # Errors
    /// The address is taken, or the process has a recorder already.
    pub(crate) async fn bind(address: SocketAddr, store: u64) -> Result<Self, String> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("cannot listen on {address} for metrics: {error}"))?;
        let builder = PrometheusBuilder::new()
            .with_recommended_naming(true)
            .add_global_label("store", store.to_string());
        let recorder = builder
            .install_recorder()
            .map_err(|error| format!("cannot record metrics: {error}"))?;
        Ok(Self { listener, recorder })
    }

    /// Answers until this task is ended.
    pub(crate) async fn run(self, server: Arc<Server>) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = upkeep.tick() => {
                    self.recorder.run_upkeep();
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: trying again at once would only burn time.
                    tracing::warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (recorder, server) = (self.recorder.clone(), Arc::clone(&server));
            tokio::spawn(async move {
                let render = || {
                    crate::metrics::publish(&server);
                    recorder.render()
                };
                let answered = timeout(BOUND, answer(stream, render)).await;
                if let Ok(Err(error)) = answered {
                    tracing::debug!(%error, "a request for metrics broke off");
                }
                drop(permit);
            });
        }
    }
}

/// Reads one request and answers it.
async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    render: impl FnOnce() -> String,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return respond(&mut stream, "400 Bad Request", "no request\n").await;
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let path = |target: &[u8]| target.split(|byte| *byte == b'?').next() == Some(b"/metrics");
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(target)) if path(target) => {
            respond(&mut stream, "200 OK", &render()).await
        }
        (Some(b"GET"), _) => respond(&mut stream, "404 Not Found", "try /metrics\n").await,
        _ => respond(&mut stream, "405 Method Not Allowed", "only GET\n").await,
    }
}

async fn respond(
    stream: &mut (impl AsyncWrite + Unpin),
    status: &str,
    body: &str,
) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back for these bytes, sent in pieces of `piece` bytes.
    async fn asked(request: &[u8], piece: usize) -> String {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let answering = tokio::spawn(answer(server, || "polyraft_up 1\n".to_owned()));
        for part in request.chunks(piece) {
            client.write_all(part).await.expect("room");
        }
        client.shutdown().await.expect("closes");
        let mut said = String::new();
        client.read_to_string(&mut said).await.expect("text");
        answering.await.expect("no panic").expect("no broken pipe");
        said
    }

    #[tokio::test]
    async fn metrics_are_given_and_nothing_else() {
        for piece in [1, 7, 1000] {
            let said = asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", piece).await;
            assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
            assert!(
                said.contains("Content-Length: 14\r\n")
                    && said.ends_with("\r\n\r\npolyraft_up 1\n")
            );
        }
        let said = |request: &'static [u8]| async move { asked(request, 100).await };
        assert!(
            said(b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
                .await
                .contains(" 200 ")
        );
        assert!(said(b"GET / HTTP/1.1\r\n\r\n").await.contains(" 404 "));
        assert!(
            said(b"POST /metrics HTTP/1.1\r\n\r\n")
                .await
                .contains(" 405 ")
        );
        assert!(said(b"\r\n\r\n").await.contains(" 405 "));
        assert!(said(b"GET /metrics").await.contains(" 400 "));
        assert!(said(b"").await.contains(" 400 "));
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let endless = vec![b'x'; 2 * HEAD_MAX];
        assert!(asked(&endless, 512).await.contains(" 400 "));
    }
}
