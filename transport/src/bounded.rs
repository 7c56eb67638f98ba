//! The server's side of the wire, where what comes in is weighed before it is unpacked.
//!
//! An empty message takes two bytes packed and more than a hundred unpacked, so that a frame of 64
//! MiB could become gigabytes before anybody has looked at its hello. Therefore its bytes are
//! walked once before: what has more parts than any sender puts into it is refused. The walk
//! allocates nothing and is stricter than the decoder behind it: what it cannot follow is refused
//! too.

use std::convert::Infallible;
use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::{Body, BoxFuture, Context, Poll, Service as Call, StdError, http};
use tonic::server::{ClientStreamingService, Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Streaming};
use tonic_prost::ProstEncoder;

use crate::config::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX, SINGLE_BYTES_MAX};
use crate::proto::transport_server::{Transport, TransportServer};
use crate::proto::{Frame, LaneReply, SnapshotChunk, SnapshotReply};
use crate::service::Service;

/// The service that other stores call, to be added to a server.
#[derive(Clone, Debug)]
pub struct TransportService {
    generated: TransportServer<Service>,
    service: Service,
}

impl TransportService {
    pub(crate) fn new(service: Service) -> Self {
        Self {
            generated: TransportServer::new(service.clone()),
            service,
        }
    }
}

impl NamedService for TransportService {
    const NAME: &'static str = <TransportServer<Service> as NamedService>::NAME;
}

impl<B> Call<http::Request<B>> for TransportService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = Method(self.service.clone());
        let limit = Some(MESSAGE_BYTES_MAX);
        match request.uri().path() {
            "/polyraft.raft.v1.Transport/Lane" => Box::pin(async move {
                let codec = Bounded::<LaneReply, Frame>(PhantomData);
                let mut grpc = Grpc::new(codec).apply_max_message_size_config(limit, limit);
                Ok(grpc.streaming(method, request).await)
            }),
            "/polyraft.raft.v1.Transport/Snapshot" => Box::pin(async move {
                let codec = Bounded::<SnapshotReply, SnapshotChunk>(PhantomData);
                let mut grpc = Grpc::new(codec).apply_max_message_size_config(limit, limit);
                Ok(grpc.client_streaming(method, request).await)
            }),
            // It knows how to say that there is no such method.
            _ => self.generated.call(request),
        }
    }
}

struct Method(Service);

impl StreamingService<Frame> for Method {
    type Response = LaneReply;
    type ResponseStream = <Service as Transport>::LaneStream;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<Frame>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.lane(request).await })
    }
}

impl ClientStreamingService<SnapshotChunk> for Method {
    type Response = SnapshotReply;
    type Future = BoxFuture<Response<SnapshotReply>, Status>;

    fn call(&mut self, request: Request<Streaming<SnapshotChunk>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.snapshot(request).await })
    }
}

/// Protobuf whose incoming messages are weighed first.
struct Bounded<Out, In>(PhantomData<fn(In) -> Out>);

impl<Out: prost::Message + 'static, In: Weighed> Codec for Bounded<Out, In> {
    type Encode = Out;
    type Decode = In;
    type Encoder = ProstEncoder<Out>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<Out, In: Weighed> Decoder for Bounded<Out, In> {
    type Item = In;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<In>, Status> {
        unpack(from.copy_to_bytes(from.remaining())).map(Some)
    }
}

/// A message from its bytes, weighed first.
pub(crate) fn unpack<In: Weighed>(bytes: Bytes) -> Result<In, Status> {
    In::weigh(&bytes, &mut Load::default()).map_err(Status::internal)?;
    In::decode(bytes).map_err(|error| Status::internal(error.to_string()))
}

/// What has been found in a message so far.
#[derive(Default)]
pub(crate) struct Load {
    /// Bytes that its sender has reckoned for messages and rows of columns.
    parts: usize,
    /// The same for entries.
    entries: usize,
}

/// What a sender reckons for a message, a number in a column (a row has seven), and an entry
/// without its data; see [`size`](crate::codec::size).
const MESSAGE: usize = 48;
const NUMBER: usize = 7;
const ENTRY: usize = 16;

/// Senders reckon a little less for a row than its numbers make up here.
const PARTS_MAX: usize = FRAME_BYTES_MAX + FRAME_BYTES_MAX / 8;

impl Load {
    fn part(&mut self, count: usize, reckoned: usize) -> Result<(), &'static str> {
        self.parts = self.parts.saturating_add(count.saturating_mul(reckoned));
        if self.parts > PARTS_MAX {
            return Err("malformed frame: too many messages");
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<(), &'static str> {
        self.entries = self.entries.saturating_add(ENTRY);
        if self.entries > SINGLE_BYTES_MAX {
            return Err("malformed frame: too many entries");
        }
        Ok(())
    }
}

/// A message that can be weighed while it is packed.
pub(crate) trait Weighed: prost::Message + Default + 'static {
    fn weigh(bytes: &[u8], load: &mut Load) -> Result<(), &'static str>;
}

impl Weighed for Frame {
    fn weigh(bytes: &[u8], load: &mut Load) -> Result<(), &'static str> {
        each_field(bytes, |field, value| match (field, value) {
            (2, Value::Bytes(envelope)) => weigh_envelope(envelope, load),
            (3 | 4, Value::Bytes(beats)) => weigh_columns(beats, load),
            _ => Ok(()),
        })
    }
}

impl Weighed for SnapshotChunk {
    fn weigh(bytes: &[u8], load: &mut Load) -> Result<(), &'static str> {
        each_field(bytes, |field, value| match (field, value) {
            (1, Value::Bytes(header)) => each_field(header, |field, value| match (field, value) {
                (2, Value::Bytes(envelope)) => weigh_envelope(envelope, load),
                _ => Ok(()),
            }),
            _ => Ok(()),
        })
    }
}

fn weigh_envelope(bytes: &[u8], load: &mut Load) -> Result<(), &'static str> {
    load.part(1, MESSAGE)?;
    each_field(bytes, |field, value| match (field, value) {
        (10, Value::Bytes(append)) => weigh_entries(append, 4, load),
        (14, Value::Bytes(propose)) => weigh_entries(propose, 1, load),
        (20, Value::Bytes(snapshot)) => weigh_columns(snapshot, load),
        _ => Ok(()),
    })
}

fn weigh_entries(bytes: &[u8], entries: u64, load: &mut Load) -> Result<(), &'static str> {
    each_field(bytes, |field, value| match value {
        Value::Bytes(_) if field == entries => load.entry(),
        _ => Ok(()),
    })
}

/// Messages of nothing but numbers, most of them in packed columns.
fn weigh_columns(bytes: &[u8], load: &mut Load) -> Result<(), &'static str> {
    each_field(bytes, |_, value| match value {
        Value::Number => load.part(1, NUMBER),
        // Each number ends with the one byte of it whose highest bit is not set.
        Value::Bytes(packed) => {
            load.part(packed.iter().filter(|byte| **byte < 0x80).count(), NUMBER)
        }
    })
}

/// What a field has.
enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

const CUT: &str = "malformed frame: it breaks off";

/// Calls `look` with the number and the value of each field of a packed message.
fn each_field<'a>(
    mut rest: &'a [u8],
    mut look: impl FnMut(u64, Value<'a>) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => {
                varint(&mut rest)?;
                Value::Number
            }
            1 => {
                take(&mut rest, 8)?;
                Value::Number
            }
            2 => {
                let length = varint(&mut rest)?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => {
                take(&mut rest, 4)?;
                Value::Number
            }
            _ => return Err("malformed frame: unknown kind of field"),
        };
        look(key >> 3, value)?;
    }
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], &'static str> {
    let length = usize::try_from(length).map_err(|_| CUT)?;
    let (taken, left) = rest.split_at_checked(length).ok_or(CUT)?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first().ok_or(CUT)?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(number);
        }
    }
    Err("malformed frame: a number without an end")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::proto::{Append, Beats, Entry, Envelope, Propose, SnapshotHeader, envelope};

    fn weigh<M: Weighed>(message: &M) -> Result<(usize, usize), &'static str> {
        let mut load = Load::default();
        M::weigh(&message.encode_to_vec(), &mut load)?;
        Ok((load.parts, load.entries))
    }

    fn append(entries: usize) -> Envelope {
        let append = Append {
            entries: vec![Entry::default(); entries],
            ..Append::default()
        };
        Envelope {
            payload: Some(envelope::Payload::Append(append)),
            ..Envelope::default()
        }
    }

    #[test]
    fn every_part_counts() {
        let propose = envelope::Payload::Propose(Propose {
            entries: vec![Entry::default(); 3],
        });
        let propose = Envelope {
            payload: Some(propose),
            ..Envelope::default()
        };
        let beats = Beats {
            group: vec![1, 1 << 40],
            sleep: vec![true; 5],
            ..Beats::default()
        };
        let frame = Frame {
            messages: vec![append(2), propose, Envelope::default()],
            heartbeats: Some(beats.clone()),
            responses: Some(beats),
            ..Frame::default()
        };
        let parts = 3 * MESSAGE + 2 * 7 * NUMBER;
        assert_eq!(weigh(&frame), Ok((parts, 5 * ENTRY)));
        let chunk = SnapshotChunk {
            header: Some(SnapshotHeader {
                message: Some(append(4)),
                ..SnapshotHeader::default()
            }),
            ..SnapshotChunk::default()
        };
        assert_eq!(weigh(&chunk), Ok((MESSAGE, 4 * ENTRY)));
        // Columns that are not packed count as much.
        let mut loose = Load::default();
        weigh_columns(&[0x08, 1, 0x08, 0x80, 1], &mut loose).unwrap();
        assert_eq!(loose.parts, 2 * NUMBER);
    }

    #[test]
    fn what_unpacks_into_much_more_than_it_is_is_refused() {
        let messages = [0x12, 0].repeat(PARTS_MAX / MESSAGE);
        let frame = |bytes: &[u8]| Frame::weigh(bytes, &mut Load::default());
        assert_eq!(frame(&messages), Ok(()));
        let one_more = [&messages[..], &[0x12, 0]].concat();
        assert_eq!(frame(&one_more), Err("malformed frame: too many messages"));

        let most = Frame {
            messages: vec![append(SINGLE_BYTES_MAX / ENTRY)],
            ..Frame::default()
        };
        assert!(weigh(&most).is_ok());
        let more = Frame {
            messages: vec![append(SINGLE_BYTES_MAX / ENTRY), append(1)],
            ..Frame::default()
        };
        assert_eq!(weigh(&more), Err("malformed frame: too many entries"));
    }

    proptest! {
        #[test]
        fn what_the_decoder_takes_the_walk_can_follow(
            bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let walked = Frame::weigh(&bytes, &mut Load::default());
            if walked.is_err() && Frame::decode(&bytes[..]).is_ok() {
                // But for groups, which nobody sends.
                prop_assert_eq!(walked, Err("malformed frame: unknown kind of field"));
            }
        }
    }
}
