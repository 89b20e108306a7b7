//! Content digests (OCI Image Specification, "Digests"): `sha256:<hex>` and `sha512:<hex>`.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest as sha;
use http::HeaderValue;

/// A hash function that Larder can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Returns the algorithm as digests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Starts a hash of this kind.
    pub fn hasher(self) -> Hasher {
        let function = match self {
            Self::Sha256 => &sha::SHA256,
            Self::Sha512 => &sha::SHA512,
        };
        Hasher { algorithm: self, context: sha::Context::new(function) }
    }
}

/// The address of content: a hash function and its value. It is plain data and cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the digest with a raw hash value, as the index keeps it; `None` if the length fits no algorithm.
    pub fn from_raw(raw: &[u8]) -> Option<Self> {
        match raw.len() {
            32 => Some(Self::Sha256(raw.try_into().ok()?)),
            64 => Some(Self::Sha512(raw.try_into().ok()?)),
            _ => None,
        }
    }

    /// Returns whether no content can have both digests: they have the same algorithm and differ.
    pub fn contradicts(&self, other: &Self) -> bool {
        self.algorithm() == other.algorithm() && self != other
    }

    /// Returns the hash function of the digest.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Returns the raw hash value; its length tells the algorithm.
    pub fn as_raw(&self) -> &[u8] {
        match self {
            Self::Sha256(raw) => raw,
            Self::Sha512(raw) => raw,
        }
    }

    /// Returns the hash value in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        let text = self.text();
        text.as_str()[self.algorithm().as_str().len() + 1..].to_owned()
    }

    /// Returns the digest as the value of a header.
    pub fn header(&self) -> HeaderValue {
        plain(self.text().as_str())
    }

    /// Returns the digest as an entity tag. Content under a digest never changes, so the digest is a strong validator
    /// (RFC 9110, section 8.8.3).
    pub fn etag(&self) -> HeaderValue {
        plain(&["\"", self.text().as_str(), "\""].concat())
    }

    /// Returns the digest as it is written. Each answer has it several times.
    pub fn text(&self) -> Text {
        let (name, raw) = (self.algorithm().as_str(), self.as_raw());
        let (begin, length) = (name.len() + 1, name.len() + 1 + 2 * raw.len());
        let mut bytes = [b':'; LONGEST];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        for (pair, byte) in bytes[begin..length].chunks_exact_mut(2).zip(raw) {
            pair.copy_from_slice(&PAIRS[usize::from(*byte)]);
        }
        Text { bytes, length }
    }
}

/// Returns a text of visible ASCII characters as the value of a header, which can have all of these.
fn plain(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The two digits of each byte: digests are written with every answer.
const PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Bytes of the longest digest in writing: `sha512:` and 128 digits.
const LONGEST: usize = 7 + 128;

/// A digest in writing.
pub struct Text {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Text {
    /// Returns the text, `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        // All of it is ASCII.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no digest that Larder can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    #[error("a digest is written ALGORITHM:HEX, for example sha256:<64 hexadecimal digits>")]
    Form,
    #[error("the digest algorithm is not sha256 or sha512, the two that can be verified")]
    Algorithm,
    #[error(
        "the digest needs {expected} lower-case hexadecimal digits behind its algorithm and has {found} characters"
    )]
    Length { expected: usize, found: usize },
    #[error("the digest has a character that is not a lower-case hexadecimal digit")]
    Character,
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::Form)?;
        match algorithm {
            "sha256" => decode_hex(hex).map(Self::Sha256),
            "sha512" => decode_hex(hex).map(Self::Sha512),
            _ => Err(InvalidDigest::Algorithm),
        }
    }
}

fn decode_hex<const N: usize>(hex: &str) -> Result<[u8; N], InvalidDigest> {
    if hex.len() != N * 2 {
        return Err(InvalidDigest::Length { expected: N * 2, found: hex.chars().count() });
    }
    let mut raw = [0; N];
    let mut all = 0;
    for (byte, pair) in raw.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        all |= high | low;
        *byte = high << 4 | low;
    }
    if all >= 16 { Err(InvalidDigest::Character) } else { Ok(raw) }
}

/// The value of each hexadecimal digit, by its character; 255 for all other characters.
const NIBBLES: [u8; 256] = {
    let mut nibbles = [255; 256];
    let mut value = 0;
    while value < 16 {
        nibbles[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    nibbles
};

/// A running hash over bytes that arrive in order.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: sha::Context,
}

impl Hasher {
    /// Adds bytes to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// Returns the digest of all bytes.
    pub fn finish(self) -> Digest {
        let value = self.context.finish();
        let raw = value.as_ref();
        // The library's output length is fixed by the function chosen in `Algorithm::hasher`.
        match self.algorithm {
            Algorithm::Sha256 => Digest::Sha256(std::array::from_fn(|at| raw[at])),
            Algorithm::Sha512 => Digest::Sha512(std::array::from_fn(|at| raw[at])),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_reads_and_writes_the_same_text() {
        for text in [EMPTY.to_owned(), format!("sha512:{}", "0f".repeat(64))] {
            let digest: Digest = text.parse().expect("a valid digest");
            assert_eq!(digest.to_string(), text);
            assert_eq!(Digest::from_raw(digest.as_raw()), Some(digest));
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        assert!(Digest::of(Algorithm::Sha512, b"").to_string().starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let long = format!("{EMPTY}0");
        for (text, why) in [
            ("", InvalidDigest::Form),
            ("sha256", InvalidDigest::Form),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", InvalidDigest::Algorithm),
            ("SHA256:aa", InvalidDigest::Algorithm),
            ("sha256:", InvalidDigest::Length { expected: 64, found: 0 }),
            (&long, InvalidDigest::Length { expected: 64, found: 65 }),
            (&upper, InvalidDigest::Character),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(why), "{text}");
        }
    }
}
