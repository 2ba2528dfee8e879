//! `cf:` users: their password is a one-time code, which an OAuth server turns into a token, with which the cloud
//! controller is asked whether its holder may enter the instance, and which process that is.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// How long either server may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The two servers, and the credentials of this proxy as a client of the first.
#[derive(Clone, Debug)]
pub struct CfAuthentication {
    pub http: reqwest::Client,
    pub cc_api_url: String,
    pub uaa_token_url: String,
    pub uaa_username: String,
    pub uaa_password: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CfError {
    #[error("cannot exchange the code for a token")]
    Exchange(#[source] reqwest::Error),
    #[error("the code was not accepted: status {0}")]
    CodeRefused(u16),
    #[error("cannot ask the cloud controller")]
    Ask(#[source] reqwest::Error),
    #[error("Fetching application data failed: status {0}")]
    AccessRefused(u16),
}

/// Who has been let in, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    pub process_guid: String,
    pub username: String,
    pub principal: String,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
    token_type: String,
}

#[derive(Deserialize)]
struct App {
    process_guid: String,
}

/// What the log says of a token's holder. The token has been accepted by its server; nothing is decided on this.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    user_name: Option<String>,
    user_id: Option<String>,
}

impl CfAuthentication {
    pub async fn authenticate(&self, app_guid: &str, index: u32, code: &str) -> Result<Access, CfError> {
        let token = self.exchange(code).await?;
        let claims = claims(&token.access_token);
        let process_guid = self.ask(app_guid, index, &token).await?;
        let or_unknown = |claim: Option<String>| claim.unwrap_or_else(|| "unknown".to_owned());
        Ok(Access {
            process_guid,
            username: or_unknown(claims.user_name),
            principal: or_unknown(claims.user_id),
        })
    }

    async fn exchange(&self, code: &str) -> Result<Token, CfError> {
        let form = format!("grant_type=authorization_code&code={}", encode(code));
        let response = self
            .http
            .post(&self.uaa_token_url)
            .basic_auth(&self.uaa_username, Some(&self.uaa_password))
            .header("Accept", "application/json")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .timeout(ANSWER_TIME)
            .body(form)
            .send()
            .await
            .map_err(CfError::Exchange)?;
        if response.status().as_u16() != 200 {
            return Err(CfError::CodeRefused(response.status().as_u16()));
        }
        response.json().await.map_err(CfError::Exchange)
    }

    async fn ask(&self, app_guid: &str, index: u32, token: &Token) -> Result<String, CfError> {
        let base = self.cc_api_url.trim_end_matches('/');
        let response = self
            .http
            .get(format!("{base}/internal/apps/{app_guid}/ssh_access/{index}"))
            .header("Authorization", format!("{} {}", token.token_type, token.access_token))
            .timeout(ANSWER_TIME)
            .send()
            .await
            .map_err(CfError::Ask)?;
        if response.status().as_u16() != 200 {
            return Err(CfError::AccessRefused(response.status().as_u16()));
        }
        let app: App = response.json().await.map_err(CfError::Ask)?;
        Ok(app.process_guid)
    }
}

fn claims(token: &str) -> Claims {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let decoded = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&decoded).unwrap_or_default()
}

/// Percent-encodes all but the characters a form leaves alone.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, extract::Path, http::HeaderMap, routing};
    use serde_json::json;

    use super::*;

    async fn token(
        headers: HeaderMap,
        body: String,
    ) -> Result<Json<serde_json::Value>, axum::http::StatusCode> {
        // ssh-proxy:secret, and the one code that is good.
        let basic = headers["authorization"] == "Basic c3NoLXByb3h5OnNlY3JldA==";
        if !basic || body != "grant_type=authorization_code&code=good%20code" {
            return Err(axum::http::StatusCode::UNAUTHORIZED);
        }
        let payload = URL_SAFE_NO_PAD.encode(json!({"user_name": "ann", "user_id": "u-1"}).to_string());
        Ok(Json(json!({"access_token": format!("h.{payload}.s"), "token_type": "bearer"})))
    }

    async fn access(
        Path((app, index)): Path<(String, u32)>,
        headers: HeaderMap,
    ) -> Result<Json<serde_json::Value>, axum::http::StatusCode> {
        let bearer = headers["authorization"].to_str().unwrap().starts_with("bearer h.");
        match bearer && app == "mine" {
            true => Ok(Json(json!({"process_guid": format!("process-{index}")}))),
            false => Err(axum::http::StatusCode::NOT_FOUND),
        }
    }

    #[tokio::test]
    async fn a_good_code_opens_the_holders_own_apps_only() {
        let router = Router::new()
            .route("/oauth/token", routing::post(token))
            .route("/internal/apps/{app}/ssh_access/{index}", routing::get(access));
        let (listen, address) = diego_base::serve::Listen::loopback().unwrap();
        let url = format!("http://{address}");
        let listener = diego_base::serve::Listener::bind(listen).await.unwrap();
        tokio::spawn(diego_base::serve::serve(listener, router, None, Default::default()));
        let cf = CfAuthentication {
            http: diego_base::http::client(&Default::default()).unwrap(),
            cc_api_url: url.clone(),
            uaa_token_url: format!("{url}/oauth/token"),
            uaa_username: "ssh-proxy".into(),
            uaa_password: "secret".into(),
        };
        let access = cf.authenticate("mine", 2, "good code").await.unwrap();
        let expected =
            Access { process_guid: "process-2".into(), username: "ann".into(), principal: "u-1".into() };
        assert_eq!(access, expected);
        assert!(matches!(cf.authenticate("mine", 2, "bad").await, Err(CfError::CodeRefused(401))));
        assert!(matches!(cf.authenticate("theirs", 2, "good code").await, Err(CfError::AccessRefused(404))));
    }
}
