//! Amazon ECR Public, public.ecr.aws.
//!
//! - Challenges say `scope="aws"` whatever is asked for (helm/helm#12491, distribution/distribution#4383). Tokens hold for
//!   an hour and do not say so. An ended one: 400 (aws/containers-roadmap#2835,
//!   oras-project/oras-go#1227).
//! - HEAD of a blob is 401 with any token, GET is 307 (aws/containers-roadmap#2671, distribution/distribution#4383).
//! - Anonymous clients have small limits (docs.aws.amazon.com/AmazonECR/latest/public/public-service-quotas.html).

use super::{Limit, Profile};
use crate::support::hub::{
    Auth, EndedToken, HeadHabit, Options, Redirect, TokenField, TokenPlace, TokenService, ToldScope,
};

pub fn profile() -> Profile {
    let service = TokenService {
        place: TokenPlace::Registry,
        path: "/token/",
        field: TokenField::Token,
        expires_in: None,
        told_scope: ToldScope::Fixed("aws"),
        ended: EndedToken::Status(400),
        ..TokenService::default()
    };
    let options = Options {
        auth: Auth::Token(service),
        redirect: Redirect::Absolute,
        blob_head: HeadHabit::Challenge,
        ..Options::default()
    };
    Profile {
        limit: Limit {
            body: r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Rate exceeded"}]}"#,
            ..Limit::default()
        },
        ..Profile::new("alias/tool", options)
    }
}
