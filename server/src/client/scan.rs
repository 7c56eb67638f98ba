//! Scans that go on from page to page.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Client;
use crate::failure::Failure;
use crate::proto::kv::{Consistency, Pair, ScanRequest, ScanResponse};

/// What is scanned, and in which pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key.
    pub start: Bytes,
    /// Past the last key; none: to the end of all keys.
    pub end: Option<Bytes>,
    /// From the last key to the first one.
    pub reverse: bool,
    /// What the store that is asked holds, perhaps out of date.
    pub stale: bool,
    /// Only the keys of this group; 0: those of all ranges.
    pub group: u64,
    /// Pairs in all, over all pages; none: every one.
    pub limit: Option<u64>,
    /// Pairs of a page; none: as many as its bytes allow.
    pub page_pairs: Option<u32>,
    /// Bytes of a page; none: 1 MiB.
    pub page_bytes: Option<u32>,
}

impl ScanOptions {
    /// Everything that begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: Bytes) -> Self {
        Self {
            end: prefix_end(&prefix),
            start: prefix,
            ..Self::default()
        }
    }
}

/// Past every key that begins with `prefix`; none: no key lies above those.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end.into());
        }
    }
    None
}

/// A scan under way. An error ends nothing: the same page may be asked for again.
#[derive(Debug)]
pub struct Scan<'a> {
    client: &'a Client,
    /// The next page, as far as it is not bounded by the limit of the scan.
    request: ScanRequest,
    page_pairs: Option<u32>,
    left: Option<u64>,
    ended: bool,
    pairs: VecDeque<Pair>,
}

impl Client {
    /// Pairs in the order of their keys, page by page. Each part of a page, which is what one range
    /// contributed, is of one moment; nothing is said of the moments of different parts.
    #[must_use]
    pub fn scan(&self, options: ScanOptions) -> Scan<'_> {
        let consistency = match options.stale {
            true => Consistency::Stale,
            false => Consistency::Linearizable,
        };
        let request = ScanRequest {
            start: options.start,
            end: options.end,
            limit: None,
            limit_bytes: options.page_bytes,
            reverse: options.reverse,
            consistency: consistency.into(),
            group: options.group,
            hint: None,
        };
        Scan {
            client: self,
            request,
            page_pairs: options.page_pairs,
            left: options.limit,
            ended: false,
            pairs: VecDeque::new(),
        }
    }
}

impl Scan<'_> {
    /// The next page; none: that was all. One without pairs need not be the last.
    ///
    /// # Errors
    /// Those of [`Client::call`]. The scan stays where it is.
    pub async fn next_page(&mut self) -> Result<Option<ScanResponse>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let page = self.client.scan_page(self.page()).await?;
        let taken = page.pairs.len() as u64;
        self.left = self.left.map(|left| left.saturating_sub(taken));
        match page.next.clone() {
            Some(next) if self.request.reverse => self.request.end = Some(next),
            Some(next) => self.request.start = next,
            None => self.ended = true,
        }
        self.ended |= self.left == Some(0);
        Ok(Some(page))
    }

    /// The next pair, of as many pages as it takes; none: that was all.
    ///
    /// # Errors
    /// See [`Scan::next_page`].
    pub async fn next(&mut self) -> Result<Option<Pair>, Failure> {
        loop {
            if let Some(pair) = self.pairs.pop_front() {
                return Ok(Some(pair));
            }
            match self.next_page().await? {
                Some(page) => self.pairs.extend(page.pairs),
                None => return Ok(None),
            }
        }
    }

    fn page(&self) -> ScanRequest {
        let left = self
            .left
            .map(|left| u32::try_from(left).unwrap_or(u32::MAX));
        let limit = match (self.page_pairs, left) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        ScanRequest {
            limit,
            ..self.request.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_past_all_its_keys() {
        let end = |prefix: &[u8]| prefix_end(prefix).map(|end| end.to_vec());
        assert_eq!(end(b"a"), Some(b"b".to_vec()));
        assert_eq!(end(b"ab\xff\xff"), Some(b"ac".to_vec()));
        assert_eq!(end(b"\xff\xff"), None);
        assert_eq!(end(b""), None);
    }
}
