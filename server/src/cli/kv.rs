//! `polyraft kv`.

use std::num::NonZeroU64;

use bytes::Bytes;
use polyraft_store::sessions::Session;
use serde_json::{Value, json};

use super::args::{KeyOptions, KvVerb};
use super::error::Error;
use super::output::{hex, parse_hex, readable, show};
use crate::client::{cas_request, put_request};
use crate::proto::kv::ResponseHeader;

pub(super) async fn run(verb: KvVerb) -> Result<(), Error> {
    match verb {
        KvVerb::Get {
            key,
            stale,
            options,
            connection,
        } => {
            let client = connection.client()?;
            let answer = client
                .get(bytes(&key, options)?, stale, options.group)
                .await?;
            let value = answer.value.as_ref();
            let text = |value: &Bytes| {
                if options.hex {
                    hex(value)
                } else {
                    readable(value)
                }
            };
            let json = json!({
                "key": key,
                "value": value.map(text),
                "value_hex": value.map(|value| hex(value)),
                "header": header_json(answer.header.as_ref()),
            });
            show(connection.output, &json, || {
                value.map_or_else(|| "(absent)".to_owned(), text)
            })
        }
        KvVerb::Put {
            key,
            value,
            options,
            connection,
        } => {
            let client = connection.client()?;
            let (name, value) = (bytes(&key, options)?, bytes(&value, options)?);
            let request = put_request(name, Some(value), options.group);
            let header = client.write_once(&mut session(), request).await?.header;
            let json = json!({ "key": key, "header": header_json(header.as_ref()) });
            show(connection.output, &json, || "ok".to_owned())
        }
        KvVerb::Delete {
            key,
            options,
            connection,
        } => {
            let client = connection.client()?;
            let request = put_request(bytes(&key, options)?, None, options.group);
            let header = client.write_once(&mut session(), request).await?.header;
            let json = json!({ "key": key, "header": header_json(header.as_ref()) });
            show(connection.output, &json, || "ok".to_owned())
        }
        KvVerb::Cas {
            key,
            value,
            expected,
            absent: _,
            options,
            connection,
        } => {
            let client = connection.client()?;
            let expected = expected.map(|text| bytes(&text, options)).transpose()?;
            let (name, value) = (bytes(&key, options)?, bytes(&value, options)?);
            let request = cas_request(name, expected, value, options.group);
            let swapped = client.write_once(&mut session(), request).await?.applied;
            show(
                connection.output,
                &json!({ "key": key, "swapped": swapped }),
                || match swapped {
                    true => "written".to_owned(),
                    false => "not written: the key has another value".to_owned(),
                },
            )
        }
        KvVerb::Scan(arguments) => super::scan::run(arguments).await,
    }
}

/// A session for one write, so that it counts once though it may be sent more often.
fn session() -> Session {
    let client = NonZeroU64::new(rand::random()).unwrap_or(NonZeroU64::MIN);
    Session::new(client, 0)
}

pub(super) fn bytes(text: &str, options: KeyOptions) -> Result<Bytes, Error> {
    if options.hex {
        parse_hex(text).map(Bytes::from).map_err(Error::bad_request)
    } else {
        Ok(Bytes::copy_from_slice(text.as_bytes()))
    }
}

pub(super) fn header_json(header: Option<&ResponseHeader>) -> Value {
    let header = header.cloned().unwrap_or_default();
    json!({
        "group": header.group,
        "leader_store": header.leader_store,
        "store": header.store,
        "applied_index": header.applied_index,
    })
}
