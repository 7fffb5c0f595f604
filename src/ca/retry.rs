//! How a CA, or a proxy before it, says when it wants to be asked again.

use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};
use prost::Message;
use sds_shim_proto::google::protobuf::Any;
use tonic::Status;

use crate::clock;

/// `google.rpc.Status` as far as its details (google/rpc/status.proto); the general type leaves them out, because in
/// an Envoy's request nothing reads them.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Details {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.RetryInfo` (google/rpc/error_details.proto).
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The wait in a status: `RetryInfo` among its details, else the metadata `retry-after`, else gRPC's
/// `grpc-retry-pushback-ms` (gRFC A6).
pub(super) fn from_status(status: &Status) -> Option<Duration> {
    let details = Details::decode(status.details()).ok().into_iter().flat_map(|status| status.details);
    let mut infos = details.filter(|any| any.type_url.ends_with("/google.rpc.RetryInfo"));
    let delay = infos.find_map(|any| RetryInfo::decode(any.value).ok()?.retry_delay);
    if let Some(Delay { seconds, nanos }) = delay
        && let (Ok(seconds), Ok(nanos @ ..1_000_000_000)) = (seconds.try_into(), nanos.try_into())
    {
        return Some(Duration::new(seconds, nanos));
    }
    let metadata = |name| status.metadata().get(name)?.to_str().ok();
    let pushback = || metadata("grpc-retry-pushback-ms")?.parse().ok().map(Duration::from_millis);
    metadata("retry-after").and_then(from_text).or_else(pushback)
}

/// The wait in an answer's `retry-after` (RFC 9110, section 10.2.3).
pub(super) fn from_headers(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok().and_then(from_text)
}

/// Seconds, or a date.
fn from_text(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    Some(date.duration_since(clock::wall_clock()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use tonic::{Code, metadata::MetadataMap};

    fn with_details(details: Vec<Any>) -> Status {
        Status::with_details(Code::ResourceExhausted, "later", Details { details }.encode_to_vec().into())
    }

    fn retry_info(seconds: i64, nanos: i32) -> Any {
        let value = RetryInfo { retry_delay: Some(Delay { seconds, nanos }) }.encode_to_vec().into();
        Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value }
    }

    #[test]
    fn retry_info_is_found_among_other_details() {
        let other = Any { type_url: "type.googleapis.com/google.rpc.Help".to_owned(), value: vec![0xff].into() };
        let status = with_details(vec![other, retry_info(7, 500_000_000)]);
        assert_eq!(from_status(&status), Some(Duration::from_millis(7500)));
    }

    #[test]
    fn an_invalid_retry_after_is_ignored() {
        for (seconds, nanos) in [(-1, 0), (1, -1), (0, 1_000_000_000)] {
            assert_eq!(from_status(&with_details(vec![retry_info(seconds, nanos)])), None);
        }
        assert_eq!(from_status(&Status::with_details(Code::Unavailable, "", vec![0xff, 0xff].into())), None);
        assert_eq!(from_status(&Status::unavailable("")), None);
        for text in ["", "-1", "soon", "1.5"] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn metadata_and_headers_are_read() {
        for (name, value, expected) in [
            ("retry-after", "120", Duration::from_secs(120)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Duration::ZERO),
            ("grpc-retry-pushback-ms", "1500", Duration::from_millis(1500)),
        ] {
            let mut metadata = MetadataMap::new();
            metadata.insert(name, value.parse().unwrap());
            assert_eq!(from_status(&Status::with_metadata(Code::Unavailable, "", metadata)), Some(expected));
        }
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "3".parse().unwrap())]);
        assert_eq!(from_headers(&headers), Some(Duration::from_secs(3)));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        assert!(from_text(&later).is_some_and(|wait| wait > Duration::from_secs(3500)));
    }
}
