//! gRPC's C++ core, as in Envoy's `google_grpc`, sends the percent-encoded path of a `unix:` socket as `:authority`. A percent
//! sign is not allowed there (RFC 3986, section 3.2.2 allows it only in registered names, which the http crate does not),
//! and h2 resets such a stream before anybody sees it (hyperium/h2#487). Nothing here looks at the authority, so its percent
//! signs are replaced, byte for byte, on the way in.
//!
//! When h2 has a release with that pull request, this file goes, and with it the strings that [`super::frames`] tells apart.

/// Index of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// gRPC's core spells the name out instead of using its index.
const AUTHORITY_NAME: &[u8] = b":authority";

/// A string of a header block.
#[derive(Clone, Copy)]
pub(super) enum Text {
    /// A name, with how much of `:authority` it has matched so far; `None` once it is another one.
    Name { matched: Option<usize> },
    /// A value, whose percent signs are replaced or not.
    Value { rewrite: bool },
}

impl Text {
    /// A name that is spelled out.
    pub(super) fn name() -> Self {
        Self::Name { matched: Some(0) }
    }

    /// The value of a name with this index.
    pub(super) fn value_of(index: usize) -> Self {
        Self::Value { rewrite: index == AUTHORITY }
    }

    /// What comes after it in its representation.
    pub(super) fn then(self) -> Option<Self> {
        match self {
            Self::Name { matched } => Some(Self::Value { rewrite: matched == Some(AUTHORITY_NAME.len()) }),
            Self::Value { .. } => None,
        }
    }

    /// The same, of which nothing is read or replaced.
    pub(super) fn passed_over(self) -> Self {
        match self {
            Self::Name { .. } => Self::Name { matched: None },
            Self::Value { .. } => Self::Value { rewrite: false },
        }
    }

    /// With its next byte, which may be replaced.
    pub(super) fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Name { matched: Some(matched) } if AUTHORITY_NAME.get(matched) == Some(byte) => {
                Self::Name { matched: Some(matched + 1) }
            }
            Self::Name { .. } => Self::Name { matched: None },
            Self::Value { rewrite } => {
                if rewrite && *byte == b'%' {
                    *byte = b'-';
                }
                self
            }
        }
    }
}
