//! The `Range` request header (RFC 9110, section 14).

/// Most parts in one multi-part response. Lazy-pulling clients ask for some dozens. For more parts the whole content is
/// cheaper, and the limit keeps a header of tiny overlapping ranges from multiplying the bytes sent.
const MAX_PARTS: usize = 128;

/// A byte range of content, end exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Returns whether the range has no bytes; none that this module makes is empty.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// A `Range` header, before the size of the content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeHeader(Vec<Spec>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `first-` or `first-last`, inclusive as in the header.
    From { first: u64, last: Option<u64> },
    /// `-length`: the last bytes.
    Suffix { length: u64 },
}

/// The part of the content to send for a `Range` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The whole content, status 200: there is no header, or one that RFC 9110 says to ignore.
    Whole,
    /// One or more parts, status 206.
    Parts(Vec<ByteRange>),
    /// No requested byte exists: status 416.
    Unsatisfiable,
}

impl RangeHeader {
    /// Reads the header. `None` if it is malformed, has another unit or too many parts, and so has to be ignored.
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, list) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let specs = list
            .split(',')
            .map(str::trim)
            .filter(|spec| !spec.is_empty())
            .map(Spec::parse)
            .collect::<Option<Vec<_>>>()?;
        (!specs.is_empty() && specs.len() <= MAX_PARTS).then_some(Self(specs))
    }

    /// Returns the parts of content of `size` bytes, or the whole if overlapping parts are longer than the content.
    pub fn select(&self, size: u64) -> Selection {
        let parts: Vec<_> = self.0.iter().filter_map(|spec| spec.resolve(size)).collect();
        if parts.is_empty() {
            return Selection::Unsatisfiable;
        }
        let asked: u64 = parts.iter().map(ByteRange::len).sum();
        if parts.len() > 1 && asked > size {
            return Selection::Whole;
        }
        Selection::Parts(parts)
    }

    /// Returns whether the header asks for the whole content: `bytes=0-`.
    pub fn is_from_the_start(&self) -> bool {
        self.0.iter().any(|spec| matches!(spec, Spec::From { first: 0, last: None }))
    }

    /// Returns whether some part goes on to the end, wherever the end is: `first-`.
    pub fn is_open_ended(&self) -> bool {
        self.0.iter().any(|spec| matches!(spec, Spec::From { last: None, .. }))
    }
}

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        match (first.trim(), last.trim()) {
            ("", length) => Some(Self::Suffix { length: number(length)? }),
            (first, "") => Some(Self::From { first: number(first)?, last: None }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From { first, last: Some(last) })
            }
        }
    }

    fn resolve(self, size: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            Self::From { first, last } => (first, last.map_or(size, |last| last.saturating_add(1).min(size))),
            Self::Suffix { length } => (size.saturating_sub(length), size),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

/// Reads a number of digits only: `str::parse` would also accept a sign. A number too large for `u64` is beyond the end
/// of any content and is read as the largest `u64`.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(header: &str, size: u64) -> Selection {
        RangeHeader::parse(header).map_or(Selection::Whole, |header| header.select(size))
    }

    fn parts(list: &[(u64, u64)]) -> Selection {
        Selection::Parts(list.iter().map(|&(start, end)| ByteRange { start, end }).collect())
    }

    #[test]
    fn ranges_of_every_form_select_their_bytes() {
        assert_eq!(select("bytes=0-0", 10), parts(&[(0, 1)]));
        assert_eq!(select("bytes=2-5", 10), parts(&[(2, 6)]));
        assert_eq!(select("bytes=2-", 10), parts(&[(2, 10)]));
        assert_eq!(select("bytes=2-99", 10), parts(&[(2, 10)]));
        assert_eq!(select("bytes=-3", 10), parts(&[(7, 10)]));
        assert_eq!(select("bytes=-30", 10), parts(&[(0, 10)]));
        assert_eq!(select("Bytes = 0-1, 4-5", 10), parts(&[(0, 2), (4, 6)]));
        assert_eq!(select("bytes=0-1,50-60", 10), parts(&[(0, 2)]));
        assert_eq!(select("bytes=0-18446744073709551615", 10), parts(&[(0, 10)]));
    }

    #[test]
    fn what_lies_behind_the_end_cannot_be_satisfied() {
        for header in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(select(header, 10), Selection::Unsatisfiable, "{header}");
        }
        assert_eq!(select("bytes=0-", 0), Selection::Unsatisfiable);
    }

    #[test]
    fn malformed_headers_are_ignored() {
        let many = format!("bytes={}", vec!["0-0"; MAX_PARTS + 1].join(","));
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=+1-2",
            "bytes=1-2-3",
            "items=0-1",
            "bytes=0-1;4-5",
            &many,
        ] {
            assert_eq!(select(header, 10), Selection::Whole, "{header}");
        }
    }

    #[test]
    fn overlapping_parts_longer_than_the_content_are_sent_as_the_whole() {
        assert_eq!(select("bytes=0-9,0-9", 10), Selection::Whole);
    }
}
