//! Amazon ECR, private registries.
//!
//! - Basic with the user `AWS` and a password of twelve hours, which a credential helper gives
//!   (docs.aws.amazon.com/AmazonECR/latest/userguide/registry_auth.html). An ended one: 403 "Your authorization token has
//!   expired" (bazel-contrib/rules_img#715, flipt-io/flipt#3043).
//! - Blobs: 307 to S3, which answers 400 to `Authorization` beside a presigned query.
//! - Lists come in pages by `nextToken` and `maxResults` as of its own API (aws/containers-roadmap#1262).

use super::{Denial, Limit, Login, Profile};
use crate::support::hub::{Auth, Options, PageToken, Paging, Redirect};

pub fn profile() -> Profile {
    let options = Options {
        auth: Auth::BasicThatEnds(403),
        redirect: Redirect::Absolute,
        paging: Paging { size: "maxResults", next: "nextToken", token: PageToken::Opaque, ..Paging::default() },
        ..Options::default()
    };
    Profile {
        login: Login::Helper,
        limit: Limit {
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#,
            ..Limit::default()
        },
        denial: Denial {
            status: 403,
            body: r#"{"errors":[{"code":"DENIED","message":"User: arn:aws:iam::1:user/me is not authorized to perform: ecr:BatchGetImage"}]}"#,
            words: "not authorized to perform: ecr:BatchGetImage",
        },
        ..Profile::new("team/app", options)
    }
}
