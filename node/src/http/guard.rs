//! The guard in front of every loopback HTTP server.
//!
//! A server on loopback is not private: any web page open in the user's browser may send requests to
//! `http://127.0.0.1:PORT`, directly or through a name that it re-points to loopback (DNS rebinding),
//! and these servers spend the user's TON. So four things must hold before a route sees a request:
//!
//! 1. `Host` is one of the names under which this server is meant to be reached (rebinding).
//! 2. No `Origin` but the server's own, and no `Sec-Fetch-Site` that says another site asked. There
//!    is no CORS: a page of another origin has no business here.
//! 3. The API key is right, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
//! 4. A request that can change something is `application/json`, which a page cannot send across
//!    origins without the preflight that rule 2 refuses.
//!
//! They are checked in this order, so that a page cannot even try keys. Refusals are JSON, shaped by
//! [`GuardConfig::refusal`] as the clients of the surface expect.

use std::{fmt, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Largest request body unless [`GuardConfig::max_body`] says otherwise: a long chat fits, and
/// hundreds of them fit in memory.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// Builds the body of a refusal from its status, a stable code and a sentence.
pub type RefusalBody = fn(status: StatusCode, code: &'static str, message: &str) -> Value;

/// What the guard in front of one server enforces.
#[derive(Clone)]
pub struct GuardConfig {
    /// The key that every request must carry. `None` lets every local program in.
    pub api_key: Option<String>,
    /// Accepted values of `Host`, port included, in lower case.
    pub allowed_hosts: Vec<String>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// The shape of refusals.
    pub refusal: RefusalBody,
}

impl GuardConfig {
    /// A server on loopback at `port`, refusing in the shape of OpenAI's error object.
    #[must_use]
    pub fn loopback(port: u16, api_key: Option<String>) -> Self {
        let names = ["127.0.0.1", "localhost", "[::1]"];
        let mut allowed_hosts: Vec<String> = names.iter().map(|name| format!("{name}:{port}")).collect();
        if port == 80 {
            // Clients leave the scheme's default port out.
            allowed_hosts.extend(names.iter().map(ToString::to_string));
        }
        Self { api_key, allowed_hosts, max_body: MAX_BODY_BYTES, refusal: openai_refusal }
    }
}

impl fmt::Debug for GuardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardConfig")
            .field("api_key", &self.api_key.as_ref().map(|_| "hidden"))
            .field("allowed_hosts", &self.allowed_hosts)
            .field("max_body", &self.max_body)
            .finish_non_exhaustive()
    }
}

/// Puts the guard in front of all routes of `router`, including its answers to unknown paths.
pub fn guard(router: Router, config: GuardConfig) -> Router {
    let max_body = config.max_body;
    let checks = Arc::new(Checks {
        // Keys are compared as digests: equal length whatever was sent, in constant time.
        key: config.api_key.as_deref().map(digest),
        hosts: config.allowed_hosts,
        max_body,
        refusal: config.refusal,
    });
    router.layer(DefaultBodyLimit::max(max_body)).layer(middleware::from_fn_with_state(checks, check))
}

struct Checks {
    key: Option<[u8; 32]>,
    hosts: Vec<String>,
    max_body: usize,
    refusal: RefusalBody,
}

struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

async fn check(State(checks): State<Arc<Checks>>, request: Request, next: Next) -> Response {
    match checks.refuse(request.method(), request.headers()) {
        None => next.run(request).await,
        Some(refusal) => {
            let body = (checks.refusal)(refusal.status, refusal.code, &refusal.message);
            (refusal.status, Json(body)).into_response()
        }
    }
}

impl Checks {
    fn refuse(&self, method: &Method, headers: &HeaderMap) -> Option<Refusal> {
        self.refuse_host(headers)
            .or_else(|| self.refuse_origin(headers))
            .or_else(|| self.refuse_key(headers))
            .or_else(|| refuse_content(method, headers))
            .or_else(|| self.refuse_length(headers))
    }

    fn allows_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }

    fn refuse_host(&self, headers: &HeaderMap) -> Option<Refusal> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|value| value.to_str().ok());
        if hosts.next().is_none() && host.is_some_and(|host| self.allows_host(host)) {
            return None;
        }
        Some(Refusal {
            status: StatusCode::FORBIDDEN,
            code: "host_not_allowed",
            message: format!(
                "this server is not reachable under the host name {:?}; use one of {}",
                host.unwrap_or_default(),
                self.hosts.join(", ")
            ),
        })
    }

    fn refuse_origin(&self, headers: &HeaderMap) -> Option<Refusal> {
        let own = |value: &str| value.strip_prefix("http://").is_some_and(|host| self.allows_host(host));
        let foreign_origin =
            headers.get_all(header::ORIGIN).iter().any(|origin| !origin.to_str().is_ok_and(own));
        let foreign_site = headers
            .get_all("sec-fetch-site")
            .iter()
            .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
        (foreign_origin || foreign_site).then(|| Refusal {
            status: StatusCode::FORBIDDEN,
            code: "origin_not_allowed",
            message:
                "web pages of another origin may not use this server; call it from a program on this machine"
                    .into(),
        })
    }

    fn refuse_key(&self, headers: &HeaderMap) -> Option<Refusal> {
        let key = self.key.as_ref()?;
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let plain = headers.get("x-api-key").and_then(|value| value.to_str().ok());
        if [bearer, plain].into_iter().flatten().any(|sent| digest(sent).ct_eq(key).into()) {
            return None;
        }
        let found = if bearer.is_some() || plain.is_some() {
            "the API key is wrong"
        } else {
            "the API key is missing"
        };
        Some(Refusal {
            status: StatusCode::UNAUTHORIZED,
            code: "invalid_api_key",
            message: format!("{found}; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"),
        })
    }

    fn refuse_length(&self, headers: &HeaderMap) -> Option<Refusal> {
        // Bodies without a length are cut off by the body limit while they are read.
        let length: u64 = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
        (length > self.max_body as u64).then(|| Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "request_too_large",
            message: format!("the request body has {length} bytes; at most {} are accepted", self.max_body),
        })
    }
}

fn refuse_content(method: &Method, headers: &HeaderMap) -> Option<Refusal> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    (!essence.eq_ignore_ascii_case("application/json")).then(|| Refusal {
        status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        code: "content_type_not_allowed",
        message: format!("content-type is {content_type:?}; send JSON with 'content-type: application/json'"),
    })
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn openai_refusal(status: StatusCode, code: &'static str, message: &str) -> Value {
    let kind =
        if status == StatusCode::UNAUTHORIZED { "authentication_error" } else { "invalid_request_error" };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "k3y";

    fn checks() -> Checks {
        let config = GuardConfig::loopback(8080, Some(KEY.into()));
        Checks {
            key: config.api_key.as_deref().map(digest),
            hosts: config.allowed_hosts,
            max_body: config.max_body,
            refusal: config.refusal,
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn refusal(method: Method, pairs: &[(&'static str, &str)]) -> Option<(u16, &'static str)> {
        checks().refuse(&method, &headers(pairs)).map(|r| (r.status.as_u16(), r.code))
    }

    #[test]
    fn a_local_program_with_the_key_is_let_in() {
        for host in ["127.0.0.1:8080", "localhost:8080", "LocalHost:8080", "[::1]:8080"] {
            assert_eq!(refusal(Method::GET, &[("host", host), ("x-api-key", KEY)]), None);
            let json = ("content-type", "application/json; charset=utf-8");
            assert_eq!(refusal(Method::POST, &[("host", host), ("authorization", "bearer k3y"), json]), None);
        }
    }

    #[test]
    fn a_rebound_name_is_refused_before_its_key_is_looked_at() {
        for host in ["evil.example:8080", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:8080", ""] {
            let sent = [("host", host), ("x-api-key", KEY)];
            assert_eq!(refusal(Method::GET, &sent), Some((403, "host_not_allowed")), "{host}");
        }
        assert_eq!(refusal(Method::GET, &[("x-api-key", KEY)]), Some((403, "host_not_allowed")));
        let twice = [("host", "localhost:8080"), ("host", "localhost:8080"), ("x-api-key", KEY)];
        assert_eq!(refusal(Method::GET, &twice), Some((403, "host_not_allowed")));
    }

    #[test]
    fn pages_of_other_origins_are_refused_even_with_the_key() {
        let host = ("host", "localhost:8080");
        let key = ("x-api-key", KEY);
        for origin in ["https://evil.example", "null", "http://localhost:3000", "https://localhost:8080"] {
            let sent = [host, key, ("origin", origin)];
            assert_eq!(refusal(Method::GET, &sent), Some((403, "origin_not_allowed")), "{origin}");
        }
        assert_eq!(refusal(Method::GET, &[host, key, ("origin", "http://localhost:8080")]), None);
        assert_eq!(
            refusal(Method::GET, &[host, key, ("sec-fetch-site", "cross-site")]),
            Some((403, "origin_not_allowed"))
        );
        assert_eq!(refusal(Method::GET, &[host, key, ("sec-fetch-site", "none")]), None);
    }

    #[test]
    fn a_missing_or_wrong_key_is_refused() {
        let host = ("host", "localhost:8080");
        for sent in [
            &[host][..],
            &[host, ("x-api-key", "")],
            &[host, ("x-api-key", "k3y2")],
            &[host, ("authorization", "Basic k3y")],
            &[host, ("authorization", "k3y")],
            &[host, ("authorization", "Bearer nope")],
        ] {
            assert_eq!(refusal(Method::GET, sent), Some((401, "invalid_api_key")), "{sent:?}");
        }
    }

    #[test]
    fn only_json_can_change_anything() {
        let base = [("host", "localhost:8080"), ("x-api-key", KEY)];
        for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/json-patch+json"]
        {
            let sent = [base[0], base[1], ("content-type", content_type)];
            assert_eq!(refusal(Method::POST, &sent), Some((415, "content_type_not_allowed")));
        }
        assert_eq!(refusal(Method::DELETE, &base), Some((415, "content_type_not_allowed")));
    }

    #[test]
    fn an_announced_body_beyond_the_limit_is_refused_unread() {
        let length = (MAX_BODY_BYTES + 1).to_string();
        let sent = [
            ("host", "localhost:8080"),
            ("x-api-key", KEY),
            ("content-type", "application/json"),
            ("content-length", &length),
        ];
        assert_eq!(refusal(Method::POST, &sent), Some((413, "request_too_large")));
    }

    #[test]
    fn the_key_is_not_printed() {
        assert!(!format!("{:?}", GuardConfig::loopback(1, Some("s3cret".into()))).contains("s3cret"));
    }
}
