//! The pieces that the directory's bytes are made of. Integers are big-endian.
//!
//! What is read comes from logs and disks, years later perhaps: every function that takes something
//! gives none if it is not there as it should be, and allocates no more than there are bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::KeyRange;

pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    // Lengths fit: the host refuses commands far below 4 GiB.
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

pub(super) fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let length = rest.try_get_u32().ok()? as usize;
    (length <= rest.remaining()).then(|| rest.split_to(length))
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn take_text(rest: &mut Bytes) -> Option<String> {
    String::from_utf8(take_bytes(rest)?.to_vec()).ok()
}

pub(super) fn take_flag(rest: &mut Bytes) -> Option<bool> {
    match rest.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Something that may not be there, behind a flag.
pub(super) fn put_option<T>(
    out: &mut BytesMut,
    value: Option<&T>,
    put: impl Fn(&mut BytesMut, &T),
) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(super) fn take_option<T>(
    rest: &mut Bytes,
    take: impl Fn(&mut Bytes) -> Option<T>,
) -> Option<Option<T>> {
    match take_flag(rest)? {
        false => Some(None),
        true => take(rest).map(Some),
    }
}

/// Any number of something, behind their count. Each takes a byte at least.
pub(super) fn put_list<T>(out: &mut BytesMut, list: &[T], put: impl Fn(&mut BytesMut, &T)) {
    out.put_u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
    list.iter().for_each(|item| put(out, item));
}

pub(super) fn take_list<T>(
    rest: &mut Bytes,
    take: impl Fn(&mut Bytes) -> Option<T>,
) -> Option<Vec<T>> {
    let count = rest.try_get_u32().ok()?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(take(rest)?);
    }
    Some(list)
}

pub(super) fn put_range(out: &mut BytesMut, range: &KeyRange) {
    put_bytes(out, &range.start);
    put_option(out, range.end.as_ref(), |out, end| put_bytes(out, end));
}

/// One without a key is none.
pub(super) fn take_range(rest: &mut Bytes) -> Option<KeyRange> {
    let start = take_bytes(rest)?;
    let end = take_option(rest, take_bytes)?;
    let empty = end.as_ref().is_some_and(|end| *end <= start);
    (!empty).then_some(KeyRange { start, end })
}
