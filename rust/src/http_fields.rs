//! What both readers of HTTP requests, of CONNECT and of whole URLs, know of header fields.

use std::time::Duration;

use crate::error::{Error, Reason, Result, Stage};

/// What a request may ask of the connection to the other node, in fields of keynet's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `Keynet-Priority: background` was asked for.
    pub background: bool,
    /// `Keynet-Patience`: how long a silence of the peer the connection outlives.
    pub patience: Option<Duration>,
}

impl Wishes {
    /// `fields`: the names and values of all. Of several the last counts.
    ///
    /// Errors: [`Reason::BadRequest`], one of them has a value that it cannot have.
    pub fn of<'f>(fields: impl Iterator<Item = (&'f [u8], &'f [u8])> + Clone) -> Result<Self> {
        let values = |name: &'static str| {
            let named = fields.clone().filter(move |(is, _)| is.eq_ignore_ascii_case(name.as_bytes()));
            named.map(|(_, value)| value.trim_ascii())
        };
        let mut wishes = Self::default();
        for value in values(PRIORITY) {
            wishes.background = match value {
                value if value.eq_ignore_ascii_case(b"background") => true,
                value if value.eq_ignore_ascii_case(b"interactive") => false,
                _ => return Err(bad_request("Keynet-Priority is 'interactive' or 'background'")),
            };
        }
        for value in values(PATIENCE) {
            // whole seconds, as the wire has them
            let seconds = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u16>().ok());
            let seconds =
                seconds.ok_or_else(|| bad_request("Keynet-Patience is a number of seconds from 0 to 65535"))?;
            wishes.patience = Some(Duration::from_secs(seconds.into()));
        }
        Ok(wishes)
    }
}

/// RFC 9110 section 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn bad_request(text: &str) -> Error {
    Error::new(Reason::BadRequest, Stage::Request, text)
}

pub const PRIORITY: &str = "keynet-priority";
pub const PATIENCE: &str = "keynet-patience";
