//! The part of an issuer that logs people in: its authorization and token endpoints.
//!
//! It answers as Dex does (`server/handlers.go` in `dexidp/dex`): 303 back to a registered address, a code that is good
//! once, `invalid_grant` for a code that is used up or came without the verifier that was promised, `invalid_client`
//! with 401; the pair in `Basic` is encoded as in a form. Unlike Dex's, its clients have to use PKCE. With `names_itself`
//! it sends `iss` (RFC 9207), as newer issuers do.

use std::collections::{BTreeMap, HashMap};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

use super::issuer::{SigningKey, now};

/// The registered client, and who is logged in at the issuer.
#[derive(Clone)]
pub struct Provider {
    pub key: SigningKey,
    pub client_id: String,
    /// `None`: a public client.
    pub client_secret: Option<String>,
    pub redirect_uris: Vec<String>,
    /// `token_endpoint_auth_methods_supported`; the first is the only one that the client may use.
    pub methods: Vec<String>,
    /// Whether its answers name it (RFC 9207), and its document says so.
    pub names_itself: bool,
    /// Whether it can end sessions.
    pub ends_sessions: bool,
    /// What ID tokens say of the person who is logged in there.
    pub person: Value,
    /// What ID tokens say otherwise than they should; `null` takes a claim out.
    pub twist: Value,
    /// The error that people come back with, instead of a code.
    pub error: Option<String>,
    /// Codes that are not used yet, with the parameters of their requests.
    codes: HashMap<String, BTreeMap<String, String>>,
    issued: u64,
    /// All ID tokens and codes that it gave, and the bodies that it was sent: no log may have them.
    pub secrets: Vec<String>,
    /// The parameters of the last request of a browser.
    pub asked: BTreeMap<String, String>,
}

/// An answer: status, `Location` if there is one, body.
pub type Told = (u16, Option<String>, Value);

pub fn form(text: &str) -> BTreeMap<String, String> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

impl Provider {
    pub fn new(key: &SigningKey, client_id: &str, client_secret: Option<&str>) -> Self {
        Self {
            key: key.clone(),
            client_id: client_id.to_owned(),
            client_secret: client_secret.map(str::to_owned),
            redirect_uris: Vec::new(),
            methods: vec!["client_secret_basic".to_owned(), "client_secret_post".to_owned()],
            names_itself: false,
            ends_sessions: false,
            person: json!({"sub": "alice-1", "preferred_username": "alice"}),
            twist: json!({}),
            error: None,
            codes: HashMap::new(),
            issued: 0,
            secrets: Vec::new(),
            asked: BTreeMap::new(),
        }
    }

    /// What the discovery document says beside the keys.
    pub fn document(&self, url: &str) -> Value {
        let mut document = json!({
            "authorization_endpoint": format!("{url}/authorize?theme=dark"),
            "token_endpoint": format!("{url}/token"),
            "token_endpoint_auth_methods_supported": self.methods,
        });
        if self.names_itself {
            document["authorization_response_iss_parameter_supported"] = true.into();
        }
        if self.ends_sessions {
            document["end_session_endpoint"] = format!("{url}/logout").into();
        }
        document
    }

    /// `/authorize`: the browser of the person comes.
    pub fn authorize(&mut self, url: &str, query: &str) -> Told {
        let asked = form(query);
        self.asked = asked.clone();
        let of = |name: &str| asked.get(name).cloned().unwrap_or_default();
        // Nobody is sent anywhere that is not registered.
        if of("client_id") != self.client_id || !self.redirect_uris.contains(&of("redirect_uri")) {
            return (400, None, json!({"error": "Unregistered redirect_uri", "asked": asked}));
        }
        let is_whole = of("response_type") == "code"
            && of("scope").split(' ').any(|scope| scope == "openid")
            && of("code_challenge_method") == "S256"
            && of("code_challenge").len() == 43
            && of("theme") == "dark";
        let mut back = Url::parse(&of("redirect_uri")).expect("a URL");
        let error = self.error.clone().or_else(|| (!is_whole).then(|| "invalid_request".to_owned()));
        let (name, value) = match error {
            Some(error) => ("error", error),
            None => {
                self.issued += 1;
                let code = format!("code-{}-of-{}", self.issued, of("nonce"));
                self.secrets.extend([code.clone(), of("state"), of("nonce"), of("code_challenge")]);
                self.codes.insert(code.clone(), asked.clone());
                ("code", code)
            }
        };
        back.query_pairs_mut().append_pair(name, &value).append_pair("state", &of("state"));
        if self.names_itself {
            back.query_pairs_mut().append_pair("iss", url);
        }
        (303, Some(back.into()), Value::Null)
    }

    /// `/token`: Larder brings the code.
    pub fn token(&mut self, url: &str, headers: &HeaderMap, body: &str) -> Told {
        let asked = form(body);
        self.secrets.extend(asked.get("code_verifier").cloned());
        let of = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
        let refusal = |status: u16, error: &str| {
            let told = format!("what was wrong: {}", of("code"));
            (status, None, json!({"error": error, "error_description": told}))
        };
        if !self.is_the_client(headers, &asked) {
            return refusal(401, "invalid_client");
        }
        if of("grant_type") != "authorization_code" {
            return refusal(400, "unsupported_grant_type");
        }
        let Some(granted) = self.codes.remove(of("code")) else {
            return refusal(400, "invalid_grant");
        };
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, of("code_verifier").as_bytes()));
        if granted["code_challenge"] != challenge {
            return refusal(400, "invalid_grant");
        }
        if granted["redirect_uri"] != of("redirect_uri") {
            return refusal(400, "invalid_request");
        }
        let mut claims = json!({
            "iss": url, "aud": self.client_id, "iat": now(), "exp": now() + 300, "nonce": granted["nonce"],
        });
        let twists = [&self.person, &self.twist].map(|more| more.as_object().expect("an object"));
        let all = claims.as_object_mut().expect("an object");
        for (name, value) in twists.into_iter().flatten() {
            match value {
                Value::Null => drop(all.remove(name)),
                value => drop(all.insert(name.clone(), value.clone())),
            }
        }
        let token = self.key.sign(&claims);
        self.secrets.push(token.clone());
        let told = json!({"access_token": "opaque", "token_type": "Bearer", "expires_in": 300, "id_token": token});
        (200, None, told)
    }

    /// Whether the client proves itself in the way that it registered (RFC 6749, section 2.3.1).
    fn is_the_client(&self, headers: &HeaderMap, asked: &BTreeMap<String, String>) -> bool {
        let basic = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
        let in_body = (asked.get("client_id").cloned(), asked.get("client_secret").cloned());
        match (&self.client_secret, self.methods.first().map(String::as_str)) {
            (None, _) => basic.is_none() && in_body == (Some(self.client_id.clone()), None),
            (Some(secret), Some("client_secret_post")) => {
                basic.is_none() && in_body == (Some(self.client_id.clone()), Some(secret.clone()))
            }
            (Some(secret), _) => {
                let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = BASE64_STANDARD.encode(format!("{}:{}", encoded(&self.client_id), encoded(secret)));
                basic == Some(&pair) && in_body.1.is_none()
            }
        }
    }
}
