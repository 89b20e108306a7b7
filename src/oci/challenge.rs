//! `WWW-Authenticate` challenges (RFC 9110, section 11.6.1): schemes in upper or lower case, several challenges in one
//! header or in several, quoted values with commas and escapes in them.

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case.
    pub scheme: String,
    /// Parameter names in lower case, values without their quotes.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Returns the value of a parameter; the first if it occurs twice.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Most bytes of a header that are read; an upstream's challenge is some hundred bytes long.
const MAX_LENGTH: usize = 16 * 1024;

/// Reads all challenges of one header value. Text that cannot be read ends the list; the challenges before it count.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = Cursor(header.get(..MAX_LENGTH).unwrap_or(header));
    loop {
        rest.skip(|byte| byte == b' ' || byte == b'\t' || byte == b',');
        let Some(word) = rest.token() else {
            return challenges;
        };
        rest.skip_blanks();
        if rest.eat(b'=') {
            rest.skip_blanks();
            let Some(value) = rest.value() else {
                return challenges;
            };
            if let Some(current) = challenges.last_mut() {
                current.parameters.push((word.to_ascii_lowercase(), value));
            }
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
        }
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, unwanted: impl Fn(u8) -> bool) {
        let length = self.0.bytes().take_while(|&byte| unwanted(byte)).count();
        self.0 = &self.0[length..];
    }

    fn skip_blanks(&mut self) {
        self.skip(|byte| byte == b' ' || byte == b'\t');
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.0.as_bytes().first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    /// Reads a token (RFC 9110, section 5.6.2).
    fn token(&mut self) -> Option<&'a str> {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let length = self.0.bytes().take_while(|&byte| is_token(byte)).count();
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Reads a token or a quoted string. An unquoted value may also contain the characters of a URL, as some registries
    /// write their realm.
    fn value(&mut self) -> Option<String> {
        if !self.eat(b'"') {
            let end = self.0.find([',', ' ', '\t']).unwrap_or(self.0.len());
            let (value, rest) = self.0.split_at(end);
            self.0 = rest;
            return Some(value.to_owned());
        }
        let mut value = String::new();
        let mut characters = self.0.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_of_docker_hub_is_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let challenges = parse(header);
        assert_eq!(challenges.len(), 1);
        assert_eq!(challenges[0].scheme, "bearer");
        assert_eq!(challenges[0].parameter("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].parameter("scope"), Some("repository:library/x:pull,push"));
    }

    #[test]
    fn several_challenges_in_one_header_stay_apart() {
        let challenges = parse(r#"BASIC Realm="a, \"b\"" , bearer realm=https://t/token , Service = s, Negotiate"#);
        let schemes: Vec<_> = challenges.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["basic", "bearer", "negotiate"]);
        assert_eq!(challenges[0].parameter("realm"), Some(r#"a, "b""#));
        assert_eq!(challenges[1].parameter("realm"), Some("https://t/token"));
        assert_eq!(challenges[1].parameter("service"), Some("s"));
    }

    #[test]
    fn hostile_challenges_end_the_list_without_harm() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("=,;\"\u{0}"), []);
        assert_eq!(parse("Bearer realm=\"open").len(), 1);
        assert_eq!(parse("Bearer realm=\"a\\").len(), 1);
        assert_eq!(parse("realm=\"x\""), []);
        let _ = parse(&"a=\"ä\\".repeat(100_000));
    }
}
