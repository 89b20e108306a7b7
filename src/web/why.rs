//! Why a request got no answer, in words that a person can act on.
//!
//! The errors of the libraries are nested; what they mean was found out with real sockets (tests/reasons.rs).

use std::error::Error;
use std::fmt;
use std::io;

use rustls::{CertificateError, InvalidMessage};

/// How the HTTP library's error of a proxy that opens no tunnel begins; it has no public type.
const TUNNEL: &str = "tunnel error: ";

/// Why a request got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// TLS was begun, and the server speaks plain HTTP.
    NoTls,
    /// The certificate is signed by an authority that is not trusted.
    UnknownIssuer,
    /// The certificate cannot be used for another reason: for another name, or not now.
    Certificate(String),
    /// Another failure of TLS.
    Tls(String),
    /// No connection in time.
    Late,
    /// The proxy on the way opened no connection to the server.
    Tunnel(String),
    /// Larder has no file descriptors left.
    OwnShortage,
    Other(String),
}

impl Why {
    /// Reads an error with all that caused it: what a person can act on is at the end.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut last = None;
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(found) = known(cause) {
                return found;
            }
            last = Some(cause.to_string());
            next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                // What is in it is its cause; by its own account the cause is what comes after that.
                Some(inner) => Some(inner),
                None => cause.source(),
            };
        }
        Self::Other(last.unwrap_or_else(|| "the request failed".to_owned()))
    }
}

fn known(cause: &(dyn Error + 'static)) -> Option<Why> {
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Some(Why::OwnShortage),
            _ => (error.kind() == io::ErrorKind::TimedOut).then_some(Why::Late),
        };
    }
    if let Some(error) = cause.downcast_ref::<rustls::Error>() {
        return Some(of_tls(error));
    }
    let text = cause.to_string();
    text.strip_prefix(TUNNEL).filter(|_| cause.source().is_none()).map(|why| Why::Tunnel(why.to_owned()))
}

fn of_tls(error: &rustls::Error) -> Why {
    match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Why::NoTls,
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Why::UnknownIssuer,
        rustls::Error::InvalidCertificate(why) => Why::Certificate(why.to_string()),
        other => Why::Tls(other.to_string()),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTls => f.write_str("it speaks plain HTTP, not TLS"),
            Self::UnknownIssuer => {
                f.write_str("its certificate is signed by an authority that is not trusted (UnknownIssuer)")
            }
            Self::Certificate(why) => write!(f, "its certificate cannot be used: {why}"),
            Self::Tls(why) => write!(f, "TLS failed: {why}"),
            Self::Late => f.write_str("no connection came about in time"),
            Self::Tunnel(why) => write!(f, "the proxy opened no tunnel: {why}"),
            Self::OwnShortage => f.write_str("no file descriptors are left here"),
            Self::Other(why) => f.write_str(why),
        }
    }
}
