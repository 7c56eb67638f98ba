//! Scans: pages of pairs in the order of their keys, over as many ranges as a page has room for.
//!
//! Each range contributes a part, read under a permit of its own, so that every part is linearizable and
//! as of one moment. Nothing makes the moments of two parts the same: an answer therefore says which of its
//! pairs belong to which part.

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange};
use polyraft_store::{Page, Room, Span};
use tokio::time::Instant;

use super::service::{KEY_BYTES_MAX, as_asked, check_group, too_long};
use crate::client::kv_client;
use crate::failure::{Failure, Reason};
use crate::owner::Aim;
use crate::proto::kv::{
    Consistency, Pair, RangeHint, ResponseHeader, ScanPart, ScanRequest, ScanResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// Bytes of a page, unless fewer or more are asked for.
const PAGE_BYTES: u32 = 1 << 20;
/// Bytes of a page at most: an answer stays below what clients of gRPC take by default (4 MiB).
pub(super) const PAGE_BYTES_MAX: u32 = 3 << 20;
/// What a part counts for beside its bounds.
const PART_OVERHEAD: usize = 64;
/// A page that has something waits for the next range no longer than this share of its time.
const PATIENCE: f64 = 0.5;

impl Server {
    /// One page.
    pub(super) async fn scan(
        &self,
        request: ScanRequest,
        call: Call,
    ) -> Result<ScanResponse, Failure> {
        check_group(request.group)?;
        let (span, room) = check(&request)?;
        let source = Source {
            stale: request.consistency() == Consistency::Stale,
            hint: request.hint,
            call,
        };
        let mut page = Gathered::new(span, room);
        if call.forwarded {
            let part = self.part_here(request.group, &page, source).await?;
            page.add(part);
        } else if request.group != 0 {
            page = self.scan_group(request.group, page, source).await?;
        } else {
            self.scan_ranges(&mut page, source).await?;
        }
        Ok(page.answer())
    }

    /// What one group holds of the span, as far as there is room.
    async fn scan_group(
        &self,
        group: u64,
        page: Gathered,
        source: Source,
    ) -> Result<Gathered, Failure> {
        let mut tries = 3;
        loop {
            self.check_exists(group, source.call).await?;
            let mut page = page.clone();
            let route = self.route_of_group(group);
            if let Some(range) = route.and_then(|route| route.range.clone()) {
                page.clip(&range);
            }
            if page.is_done() {
                return Ok(page);
            }
            match self.part(Aim::Group(group), &page, source).await {
                Ok(part) => {
                    page.add(part);
                    return Ok(page);
                }
                // Its range is not what it was thought to be, and is known now.
                Err(failure) if failure.reason == Reason::RangeChanged && tries > 0 => tries -= 1,
                Err(failure) => return Err(as_asked(failure, group, source.call)),
            }
        }
    }

    /// What one range after the other holds of it. A range that fails ends the page, unless it would
    /// be empty then.
    async fn scan_ranges(&self, page: &mut Gathered, source: Source) -> Result<(), Failure> {
        let begun = Instant::now();
        let whole = source.call.deadline.saturating_duration_since(begun);
        let patience = begun + whole.mul_f64(PATIENCE);
        let mut source = source;
        while !page.is_done() {
            let first = page.parts.is_empty();
            if !first && Instant::now() >= patience {
                return Ok(());
            }
            match self.part(page.aim(), page, source).await {
                Ok(part) => {
                    if !page.add(part) {
                        return Ok(());
                    }
                }
                Err(failure) if first => return Err(failure),
                Err(failure) => {
                    tracing::debug!(why = failure.message, "a page ends before a range");
                    return Ok(());
                }
            }
            // The next range is another one than the client spoke of, and gets no more than its share.
            source.hint = source.hint.map(|_| RangeHint::default());
            source.call.deadline = patience;
        }
        Ok(())
    }

    /// The beginning of what is left of the page, from one group.
    async fn part(&self, aim: Aim<'_>, page: &Gathered, source: Source) -> Result<Part, Failure> {
        let Source { stale, hint, call } = source;
        if stale {
            let group = self.group_here(aim, call).await?;
            return self.part_here(group, page, source).await;
        }
        let local = |group| self.part_here(group, page, source);
        let remote = |group, channel| {
            let request = call.forward(page.request(group, hint));
            async move {
                let answer = kv_client(channel).scan(request).await?.into_inner();
                Part::from_answer(answer).map_err(tonic::Status::from)
            }
        };
        let part = self.at_owner(aim, hint, call, local, remote).await?;
        if !part.begins(&page.rest) {
            let text = "a store answered for other keys than it was asked for; try again";
            return Err(Failure::new(Reason::Stale, text));
        }
        self.learn_header(part.about.header.as_ref());
        Ok(part)
    }

    async fn part_here(
        &self,
        group: u64,
        page: &Gathered,
        source: Source,
    ) -> Result<Part, Failure> {
        if source.stale {
            let descriptor = self.replica_here(group)?;
            let header = self.stale_header(&descriptor, source.hint);
            let part = self.read_part(&descriptor, header, page)?;
            return part.ok_or_else(|| self.not_whole(group));
        }
        let ask = |respond| self.handle.read(GroupId(group), respond);
        let permit = self.ask(group, source.call, ask).await?;
        let header = self.leader_header(&permit.descriptor, permit.applied.0, source.hint);
        let part = self.read_part(&permit.descriptor, header, page)?;
        self.check_permit(&permit)?;
        // It leads, so nothing is being installed: the data is whole.
        part.ok_or_else(|| self.not_whole(group))
    }

    /// Reads the disk; none while the group's data is not whole here.
    fn read_part(
        &self,
        descriptor: &GroupDescriptor,
        header: ResponseHeader,
        page: &Gathered,
    ) -> Result<Option<Part>, Failure> {
        let span = within(&page.rest, descriptor.range.as_ref());
        let span = span.ok_or_else(|| self.range_changed(descriptor, page.aim()))?;
        let room = page.room();
        let found = tokio::task::block_in_place(|| self.data.page(descriptor, &span, room));
        let found = found.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        Ok(found.map(|found| Part::new(header, span, found)))
    }
}

/// How a page is read.
#[derive(Clone, Copy, Debug)]
struct Source {
    stale: bool,
    /// What the client believes of the range that is read next.
    hint: Option<RangeHint>,
    call: Call,
}

/// What one range contributes.
#[derive(Debug)]
struct Part {
    about: ScanPart,
    pairs: Vec<Pair>,
    bytes: usize,
}

impl Part {
    fn new(header: ResponseHeader, mut span: Span, page: Page) -> Self {
        // What was left out belongs to the next part.
        if page.more
            && let Some((last, _)) = page.pairs.last()
        {
            let mut next = span.clone();
            next.advance(last);
            if span.reverse {
                span.start.clone_from(last);
            } else {
                span.end = Some(next.start);
            }
        }
        let about = ScanPart {
            header: Some(header),
            start: span.start,
            end: span.end,
            pairs: u32::try_from(page.pairs.len()).unwrap_or(u32::MAX),
        };
        let pairs = page.pairs.into_iter();
        Self {
            about,
            pairs: pairs.map(|(key, value)| Pair { key, value }).collect(),
            bytes: page.bytes,
        }
    }

    /// The answer of another store, which has exactly one part.
    fn from_answer(answer: ScanResponse) -> Result<Self, Failure> {
        let mut parts = answer.parts.into_iter();
        let (Some(about), None) = (parts.next(), parts.next()) else {
            let text = "a store answered a scan of one group with several parts, or none";
            return Err(Failure::new(Reason::Internal, text));
        };
        if about.pairs as usize != answer.pairs.len() {
            let text = "a store answered a scan with other pairs than it says";
            return Err(Failure::new(Reason::Internal, text));
        }
        let size = |pair: &Pair| polyraft_store::pair_bytes(&pair.key, &pair.value);
        Ok(Self {
            bytes: answer.pairs.iter().map(size).sum(),
            pairs: answer.pairs,
            about,
        })
    }

    /// Whether it is about keys where the span begins, and about none that are not in it.
    fn begins(&self, span: &Span) -> bool {
        let (start, end) = (&self.about.start, &self.about.end);
        let ends_within = |end: &Option<Bytes>| match (end, &span.end) {
            (Some(end), Some(last)) => end <= last,
            (None, Some(_)) => false,
            (_, None) => true,
        };
        let covered = self
            .pairs
            .iter()
            .all(|pair| *start <= pair.key && end.as_ref().is_none_or(|end| pair.key < *end));
        let begins = if span.reverse {
            *end == span.end && *start >= span.start
        } else {
            *start == span.start && ends_within(end)
        };
        begins && covered
    }
}

/// A page that grows.
#[derive(Clone, Debug)]
struct Gathered {
    /// What is not in it yet.
    rest: Span,
    /// Nothing is left.
    ended: bool,
    room: Room,
    bytes: usize,
    pairs: Vec<Pair>,
    parts: Vec<ScanPart>,
}

impl Gathered {
    fn new(span: Span, room: Room) -> Self {
        Self {
            ended: is_empty(&span),
            rest: span,
            room,
            bytes: 0,
            pairs: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Where it goes on.
    fn aim(&self) -> Aim<'_> {
        match self.rest.reverse {
            true => Aim::Before(self.rest.end.as_deref()),
            false => Aim::Key(&self.rest.start),
        }
    }

    fn room(&self) -> Room {
        Room {
            pairs: self.room.pairs.saturating_sub(self.pairs.len()),
            bytes: self.room.bytes.saturating_sub(self.bytes),
        }
    }

    fn is_done(&self) -> bool {
        let room = self.room();
        self.ended || room.pairs == 0 || room.bytes == 0
    }

    /// Only what lies in `range` is wanted.
    fn clip(&mut self, range: &KeyRange) {
        let rest = &mut self.rest;
        if rest.start < range.start {
            rest.start.clone_from(&range.start);
        }
        if let Some(last) = &range.end
            && rest.end.as_ref().is_none_or(|end| end > last)
        {
            rest.end = Some(last.clone());
        }
        self.ended |= is_empty(rest);
    }

    /// Takes a part in; false: there is no room for its first pair, which is for the next page.
    fn add(&mut self, part: Part) -> bool {
        let room = self.room();
        if !self.pairs.is_empty() && part.pairs.len() == 1 && part.bytes > room.bytes {
            return false;
        }
        let (start, end) = (&part.about.start, &part.about.end);
        let about = PART_OVERHEAD + start.len() + end.as_ref().map_or(0, Bytes::len);
        self.bytes = self.bytes.saturating_add(part.bytes + about);
        let rest = &mut self.rest;
        match (rest.reverse, end) {
            (true, _) => rest.end = Some(start.clone()),
            (false, Some(end)) => rest.start.clone_from(end),
            (false, None) => self.ended = true,
        }
        self.ended |= is_empty(rest);
        self.pairs.extend(part.pairs);
        self.parts.push(part.about);
        true
    }

    /// What is left of it, as a request to the leader of a group.
    fn request(&self, group: u64, hint: Option<RangeHint>) -> ScanRequest {
        let room = self.room();
        ScanRequest {
            start: self.rest.start.clone(),
            end: self.rest.end.clone(),
            limit: u32::try_from(room.pairs).ok(),
            limit_bytes: u32::try_from(room.bytes).ok(),
            reverse: self.rest.reverse,
            consistency: Consistency::Linearizable.into(),
            group,
            hint,
        }
    }

    fn answer(self) -> ScanResponse {
        let next = match (self.ended, self.rest.reverse) {
            (true, _) => None,
            (false, true) => self.rest.end,
            (false, false) => Some(self.rest.start),
        };
        ScanResponse {
            pairs: self.pairs,
            parts: self.parts,
            next,
        }
    }
}

fn is_empty(span: &Span) -> bool {
    span.end.as_ref().is_some_and(|end| *end <= span.start)
}

/// The part of a span that lies in a group's range; none: the range does not hold its beginning.
fn within(span: &Span, range: Option<&KeyRange>) -> Option<Span> {
    let Some(range) = range else {
        return Some(span.clone());
    };
    let begins = match (&span.end, &range.end) {
        _ if !span.reverse => range.contains(&span.start),
        (Some(end), Some(last)) => range.start < *end && end <= last,
        (Some(end), None) => range.start < *end,
        (None, last) => last.is_none(),
    };
    if !begins {
        return None;
    }
    let end = match (&span.end, &range.end) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.as_ref().or(other.as_ref()),
    };
    Some(Span {
        start: span.start.clone().max(range.start.clone()),
        end: end.cloned(),
        reverse: span.reverse,
    })
}

/// What is asked for, if it can be meant.
fn check(request: &ScanRequest) -> Result<(Span, Room), Failure> {
    let bad = |text: String| Err(Failure::new(Reason::BadRequest, text));
    for key in std::iter::once(&request.start).chain(&request.end) {
        // Past the longest key is one byte more.
        if key.len() > KEY_BYTES_MAX + 1 {
            return Err(too_long(key));
        }
    }
    if request.end.as_ref().is_some_and(|end| *end < request.start) {
        return bad("the end of the scan lies before its start: the start is always the lower one, also in reverse".to_owned());
    }
    if request.limit == Some(0) || request.limit_bytes == Some(0) {
        return bad(
            "a scan with a limit of 0: leave the limit away, or ask for 1 at least".to_owned(),
        );
    }
    let bytes = request.limit_bytes.unwrap_or(PAGE_BYTES);
    if bytes > PAGE_BYTES_MAX {
        let text = format!(
            "a page of {bytes} bytes exceeds the limit of {PAGE_BYTES_MAX} bytes: ask for several pages"
        );
        return Err(Failure::new(Reason::TooLarge, text));
    }
    let span = Span {
        start: request.start.clone(),
        end: request.end.clone(),
        reverse: request.reverse,
    };
    let room = Room {
        pairs: request.limit.unwrap_or(u32::MAX) as usize,
        bytes: bytes as usize,
    };
    Ok((span, room))
}
