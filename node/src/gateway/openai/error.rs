//! OpenAI's error object, and how this network's refusals map onto it.

use std::time::Duration;

use cocoon_client::ChatError;
use cocoon_payments::NanoTon;
use serde_json::{Value, json};

/// What to do about a cap that is too low.
const RAISE_CAP: &str = "raise `payment.spend_cap_nanoton` in the gateway's configuration";

/// An error as an OpenAI client expects it: an HTTP status and `{"error": {message, type, param, code}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status code.
    pub status: u16,
    /// For the person: what happened and what to try.
    pub message: String,
    /// OpenAI's error class, such as `invalid_request_error`.
    pub kind: &'static str,
    /// The request field at fault.
    pub param: Option<String>,
    /// For programs, such as `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// When trying again may help. Without it clients are told not to try again by themselves.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// A malformed request.
    pub fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", None, message).at(param)
    }

    /// A request for something that this gateway does not do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", Some("unsupported_parameter"), message).at(Some(param))
    }

    /// This key has spent what it may spend.
    pub fn spend_cap(spent: NanoTon, cap: NanoTon) -> Self {
        let message = format!("this key has spent {spent} of its cap of {cap}; {RAISE_CAP}");
        Self::new(429, "insufficient_quota", Some("spend_cap_reached"), message)
    }

    /// What this key may still spend is reserved by requests that are being answered.
    pub fn spend_reserved(spent: NanoTon, cap: NanoTon) -> Self {
        let message = format!(
            "this key has spent {spent} of its cap of {cap}, and running requests may need the rest; \
             wait for one to end, or {RAISE_CAP}"
        );
        Self::new(429, "rate_limit_error", Some("spend_cap_reserved"), message).retry(Duration::from_secs(1))
    }

    /// The same error, once `spent` was signed away for the answer: whoever asks again pays again, which
    /// no client may do by itself.
    #[must_use]
    pub fn after_paying(mut self, spent: NanoTon) -> Self {
        if !spent.is_zero() {
            self.retry_after = None;
        }
        self
    }

    /// The error object.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }

    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code, retry_after: None }
    }

    fn at(mut self, param: Option<&str>) -> Self {
        self.param = param.map(str::to_owned);
        self
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        let message = error.to_string();
        match error {
            ChatError::UnknownModel { .. } => {
                Self::new(404, "invalid_request_error", Some("model_not_found"), message).at(Some("model"))
            }
            ChatError::ContextExceeded { .. } => {
                Self::new(400, "invalid_request_error", Some("context_length_exceeded"), message)
                    .at(Some("messages"))
            }
            ChatError::Invalid { ref field, .. } => {
                let field = field.clone();
                Self::new(400, "invalid_request_error", None, message).at(Some(&field))
            }
            ChatError::WalletEmpty { .. } => {
                Self::new(402, "insufficient_quota", Some("wallet_empty"), message)
            }
            ChatError::Policy { .. } => {
                Self::new(403, "permission_error", Some("refused_by_policy"), message)
            }
            // The asker's own limit, which the same request meets again.
            ChatError::CostCeiling { max_cost, why } => {
                let message =
                    format!("the request may cost {max_cost}, {why}; shorten the messages, or {RAISE_CAP}");
                Self::new(400, "invalid_request_error", Some("cost_ceiling"), message)
            }
            ChatError::NoWorkerOnline { .. } => {
                Self::new(503, "server_error", Some("no_worker_online"), message)
                    .retry(Duration::from_secs(5))
            }
            ChatError::Deadline { .. } => Self::new(504, "server_error", Some("deadline_exceeded"), message),
            _ => Self::new(502, "server_error", Some("all_workers_failed"), message)
                .retry(Duration::from_secs(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_openai_s_four_fields() {
        let body = ApiError::invalid(Some("top_p"), "no").body();
        assert_eq!(
            body,
            json!({"error": {"message": "no", "type": "invalid_request_error", "param": "top_p", "code": null}})
        );
    }
    #[test]
    fn a_cost_ceiling_is_the_request_s_fault_and_final() {
        let error = ApiError::from(ChatError::CostCeiling { max_cost: NanoTon(5), why: "9 are due".into() });
        assert_eq!((error.status, error.kind), (400, "invalid_request_error"));
        assert_eq!((error.code, error.retry_after), (Some("cost_ceiling"), None));
        assert!(error.message.contains("9 are due"), "{}", error.message);
    }

    #[test]
    fn only_a_failure_that_was_not_paid_for_may_be_tried_again() {
        let failed = || ApiError::from(ChatError::AllWorkersFailed { legs: Vec::new() });
        assert!(failed().after_paying(NanoTon::ZERO).retry_after.is_some());
        assert!(failed().after_paying(NanoTon(1)).retry_after.is_none());
        assert!(ApiError::from(ChatError::Deadline { seconds: 1 }).retry_after.is_none());
        assert!(ApiError::spend_cap(NanoTon(1), NanoTon(1)).retry_after.is_none());
        assert!(ApiError::spend_reserved(NanoTon(0), NanoTon(1)).retry_after.is_some());
    }
}
