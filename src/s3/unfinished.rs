//! Uploads in parts that were begun and neither completed nor aborted: a process was killed meanwhile. Their parts take
//! room, and no list of keys shows them.
//!
//! The library does not know the request (ListMultipartUploads). Not every server has it as AWS does: with a prefix that
//! is no whole key, MinIO lists nothing, and without one everything (minio/minio#20989); it removes such uploads itself
//! after a day.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use object_store::aws::AwsAuthorizer;
use object_store::client::HttpRequestBody;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use serde::Deserialize;

use super::{Bucket, Kind, PATIENCE, S3Error, Upload, within};

/// Most uploads that are looked at in one go.
const MOST: u32 = 1_000;

/// An upload that was not completed.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// `None`: the key is none of Larder's, or a probe's.
    pub upload: Option<Upload>,
    path: Path,
    id: String,
    /// By the server's own times; `None` if it does not state them.
    pub age: Option<Duration>,
}

#[derive(Debug, Deserialize)]
struct Uploads {
    #[serde(rename = "Upload", default)]
    uploads: Vec<Begun>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Begun {
    key: String,
    upload_id: String,
    initiated: String,
}

impl Bucket {
    /// Returns uploads that were begun below the prefix, at most [`MOST`].
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, S3Error> {
        let mut found = self.uploads_below(&self.prefix).await?;
        if found.is_empty() && !self.prefix.is_empty() {
            found = self.uploads_below("").await?;
        }
        let own = found.into_iter().filter(|begun| begun.key.starts_with(&*self.prefix));
        let unfinished = own.map(|begun| {
            let initiated = humantime::parse_rfc3339_weak(&begun.initiated).ok();
            let age = initiated.and_then(|at| self.http.age(at));
            let upload = Upload::of_key(&self.prefix, &begun.key);
            Unfinished { upload, path: Path::from(begun.key), id: begun.upload_id, age }
        });
        Ok(unfinished.collect())
    }

    async fn uploads_below(&self, prefix: &str) -> Result<Vec<Begun>, S3Error> {
        let document = within(PATIENCE, self.ask_for_uploads(prefix)).await?;
        let read: Result<Uploads, _> = quick_xml::de::from_reader(&document[..]);
        let read = read.map_err(|error| S3Error::wrong(format!("the list of uploads cannot be read: {error}")))?;
        Ok(read.uploads)
    }

    async fn ask_for_uploads(&self, prefix: &str) -> object_store::Result<Bytes> {
        let mut url = self.base.clone();
        url.query_pairs_mut().append_pair("max-uploads", &MOST.to_string());
        if !prefix.is_empty() {
            url.query_pairs_mut().append_pair("prefix", prefix);
        }
        url.query_pairs_mut().append_pair("uploads", "");
        let generic =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "S3", source };
        let request = Request::builder().method(Method::GET).uri(url.as_str()).body(HttpRequestBody::empty());
        let mut request = request.map_err(|error| generic(error.into()))?;
        let credential = self.store.credentials().get_credential().await?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None)?;
        let answer = self.client().execute(request).await.map_err(|error| generic(error.into()))?;
        answer.into_body().bytes().await.map_err(|error| generic(error.into()))
    }

    /// Aborts an upload that was not completed. Servers do not know one that has ended since it was listed (404
    /// `NoSuchUpload`: Garage, `get_upload` in `src/api/s3/multipart.rs`; Ceph, `ERR_NO_SUCH_UPLOAD`).
    pub async fn abort_unfinished(&self, unfinished: &Unfinished) -> Result<(), S3Error> {
        match within(PATIENCE, self.store.abort_multipart(&unfinished.path, &unfinished.id)).await {
            Err(error) if error.kind() != Kind::Absent => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_uploads_is_read() {
        let document = "<?xml version=\"1.0\"?><ListMultipartUploadsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Bucket>larder</Bucket><KeyMarker/><IsTruncated>false</IsTruncated>\
            <Upload><Key>p/a</Key><UploadId>1</UploadId><Initiator><ID>x</ID></Initiator>\
            <Initiated>2026-11-01T10:11:12.000Z</Initiated></Upload>\
            <Upload><Key>p/b</Key><UploadId>2</UploadId><Initiated>2026-11-01T10:11:12Z</Initiated></Upload>\
            </ListMultipartUploadsResult>";
        let read: Uploads = quick_xml::de::from_str(document).expect("a list");
        let keys: Vec<_> = read.uploads.iter().map(|begun| begun.key.as_str()).collect();
        assert_eq!(keys, ["p/a", "p/b"]);
        assert!(read.uploads.iter().all(|begun| humantime::parse_rfc3339_weak(&begun.initiated).is_ok()));
        let none: Uploads = quick_xml::de::from_str("<ListMultipartUploadsResult/>").expect("a list");
        assert!(none.uploads.is_empty());
    }
}
