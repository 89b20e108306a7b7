//! Where registries differ from the specification: of HEAD, of headers.

use std::collections::HashSet;

use super::faults::Fault;
use super::token::{Realm, challenge};
use super::wire::{Kind, Request, Response};
use super::{HeadHabit, Options};
use crate::support::content::sha256;

/// What it remembers of requests.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// Manifests that were asked for by GET.
    fetched: HashSet<String>,
}

impl Habits {
    /// Changes an answer to a request that was let in.
    pub fn apply(&mut self, request: &Request, response: &mut Response, options: &Options, realm: &Realm) {
        let is_object = matches!(request.kind, Kind::Manifest | Kind::Blob | Kind::Storage);
        let is_document = response.headers.iter().any(|(name, value)| name == "content-type" && value.contains("json"));
        let is_manifest = request.kind == Kind::Manifest && response.status == 200;
        if let Some(media_type) = options.manifest_type.filter(|_| is_manifest) {
            response.remove_header("content-type");
            response.headers.push(("content-type".to_owned(), media_type.to_owned()));
        }
        if !options.names_digests {
            Fault::NoDigestHeader.apply(request, response);
        }
        if options.names_sha256_alone && is_object && response.status == 200 {
            response.remove_header("docker-content-digest");
            response.headers.push(("docker-content-digest".to_owned(), sha256(&response.body)));
        }
        if !options.sends_lengths && is_object && matches!(response.status, 200 | 206) {
            response.delivery.chunked = true;
        }
        if options.compresses && is_document {
            Fault::Gzip.apply(request, response);
        }
        if !matches!(request.kind, Kind::Token | Kind::Storage) {
            let headers = options.headers.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            response.headers.extend(headers);
        }
        let habit = match request.kind {
            Kind::Manifest => options.manifest_head,
            Kind::Blob => options.blob_head,
            Kind::Storage => options.storage_head,
            _ => HeadHabit::Right,
        };
        let reference = format!("{}:{}", request.name, request.reference);
        if request.method != "HEAD" {
            self.fetched.insert(reference);
            return;
        }
        let head = match habit {
            _ if response.status >= 400 => return,
            HeadHabit::Right => return,
            HeadHabit::AfterGet if self.fetched.contains(&reference) => return,
            HeadHabit::AfterGet => Response::error(404, "NOT_FOUND", "not found"),
            HeadHabit::Status(status) => Response::error(status, "UNKNOWN", "HEAD is not for this"),
            HeadHabit::Challenge => challenge(request, options, realm, ""),
            HeadHabit::Hollow(media_type) => Response::new(200).body(media_type, ""),
        };
        response.replace(head);
        response.delivery.chunked = false;
    }
}
