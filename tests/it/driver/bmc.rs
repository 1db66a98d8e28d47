//! A controller with what the emulator lacks: sessions that expire, ETags that have to match, and the
//! habits of vendors.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use understudy::model::machine::{BootMode, Door, Driver, Login, Redfish};

use super::lab::{Machine, file, pin};

/// How it behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habits {
    /// Sessions alone, each for so many requests.
    pub(super) session: Option<u32>,
    /// Takes a PATCH with the system's ETag only.
    pub(super) etags: bool,
    /// Forgets the override where the mode is not sent.
    pub(super) needs_mode: bool,
    /// Refuses the mode.
    pub(super) refuses_mode: bool,
    /// The drive's image is told after it is gone, and more than `Image` is refused.
    pub(super) sticky: bool,
    /// Answers 503 twice after each change.
    pub(super) busy: bool,
    /// Keeps an image once a machine was installed from it.
    pub(super) keeps_image: bool,
    /// An override is good for every boot, and is not cleared.
    pub(super) keeps_override: bool,
}

#[derive(Clone)]
pub(super) struct Bmc {
    at: SocketAddr,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    habits: Habits,
    machine: Machine,
    on: bool,
    target: String,
    enabled: String,
    image: String,
    inserted: bool,
    etag: u32,
    left: u32,
    /// Requests that changed something, in order.
    changes: Vec<String>,
    sessions: u32,
    /// Those that were not given back.
    open: u32,
    asked: u32,
    deaf: u32,
    down: bool,
}

impl Bmc {
    pub(super) async fn start(machine: &Machine, habits: Habits) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let inner = Inner {
            habits,
            machine: machine.clone(),
            on: true,
            target: "Hdd".into(),
            enabled: "Disabled".into(),
            // Somebody's, left there.
            image: "https://other.example/rescue.iso".into(),
            inserted: true,
            etag: 1,
            left: 0,
            changes: Vec::new(),
            sessions: 0,
            open: 0,
            asked: 0,
            deaf: 0,
            down: false,
        };
        let bmc = Self {
            at,
            inner: Arc::new(Mutex::new(inner)),
        };
        let router = Router::new().fallback(answer).with_state(bmc.clone());
        tokio::spawn(serve(listener, router));
        bmc
    }

    pub(super) fn driver(&self, boot_mode: Option<BootMode>) -> Redfish {
        let session = self.inner.lock().unwrap().habits.session.is_some();
        Redfish {
            door: Door {
                url: format!("https://{}", self.at).parse().unwrap(),
                pin: Some(pin("server.pem")),
                credential: "bmc".into(),
            },
            system: "/redfish/v1/Systems/1".into(),
            media: None,
            login: if session {
                Login::Session
            } else {
                Login::Basic
            },
            boot_mode,
        }
    }

    pub(super) fn redfish(&self, boot_mode: Option<BootMode>) -> Driver {
        Driver::Redfish(Box::new(self.driver(boot_mode)))
    }

    pub(super) fn changes(&self) -> Vec<String> {
        self.inner.lock().unwrap().changes.clone()
    }

    pub(super) fn asked(&self) -> u32 {
        self.inner.lock().unwrap().asked
    }

    pub(super) fn sessions(&self) -> u32 {
        self.inner.lock().unwrap().sessions
    }

    /// Sessions that were not given back. Those that expired are forgotten.
    pub(super) fn open_sessions(&self) -> u32 {
        self.inner.lock().unwrap().open
    }

    /// Answers 503 from now on, or no longer.
    pub(super) fn set_down(&self, down: bool) {
        self.inner.lock().unwrap().down = down;
    }

    pub(super) fn is_tidy(&self) -> bool {
        let inner = self.inner.lock().unwrap();
        !inner.inserted && inner.enabled == "Disabled"
    }
}

async fn serve(listener: TcpListener, router: Router) {
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let chain = vec![CertificateDer::from_pem_file(file("server.pem")).unwrap()];
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = hyper::service::service_fn(move |request: hyper::Request<_>| {
                router.clone().oneshot(request.map(Body::new))
            });
            let http = hyper::server::conn::http1::Builder::new();
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(State(bmc): State<Bmc>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 16).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    bmc.inner
        .lock()
        .unwrap()
        .answer(&head.method, head.uri.path(), &head.headers, &body)
}

fn status(status: StatusCode, message: &str) -> Response {
    let error = json!({"error": {"@Message.ExtendedInfo": [{"Message": message}]}});
    (status, Json(error)).into_response()
}

const BASIC: &str = "Basic cm9vdDpjYWx2aW4=";

impl Inner {
    fn admits(&mut self, headers: &HeaderMap) -> bool {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        match self.habits.session {
            None => header("authorization") == Some(BASIC),
            Some(_) => {
                let token = format!("token-{}", self.sessions);
                let fits = header("x-auth-token") == Some(&token) && self.left > 0;
                self.left = self.left.saturating_sub(1);
                fits
            }
        }
    }

    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Value,
    ) -> Response {
        self.asked += 1;
        if self.down || (self.habits.busy && self.deaf > 0) {
            self.deaf = self.deaf.saturating_sub(1);
            return status(StatusCode::SERVICE_UNAVAILABLE, "starting up");
        }
        if let (&Method::POST, "/redfish/v1/SessionService/Sessions") = (method, path) {
            if body != &json!({"UserName": "root", "Password": "calvin"}) {
                return status(StatusCode::UNAUTHORIZED, "no");
            }
            self.sessions += 1;
            self.open = 1;
            self.left = self.habits.session.unwrap_or(0);
            let headers = [
                ("x-auth-token", format!("token-{}", self.sessions)),
                (
                    "location",
                    "https://bmc/redfish/v1/SessionService/Sessions/9".to_owned(),
                ),
            ];
            return (StatusCode::CREATED, headers, Json(json!({}))).into_response();
        }
        if !self.admits(headers) {
            return status(StatusCode::UNAUTHORIZED, "no");
        }
        match (method, path) {
            (&Method::GET, "/redfish/v1/Systems/1") => {
                let system = json!({
                    "PowerState": if self.on { "On" } else { "Off" },
                    "Boot": {
                        "BootSourceOverrideEnabled": self.enabled,
                        "BootSourceOverrideTarget": self.target,
                    },
                    "Links": {"ManagedBy": [{"@odata.id": "/redfish/v1/Managers/1"}]},
                });
                ([("etag", format!("\"{}\"", self.etag))], Json(system)).into_response()
            }
            (&Method::GET, "/redfish/v1/Managers/1") => {
                Json(json!({"VirtualMedia": {"@odata.id": "/redfish/v1/Managers/1/VM"}}))
                    .into_response()
            }
            (&Method::GET, "/redfish/v1/Managers/1/VM") => {
                let members = ["Floppy", "Cd"]
                    .map(|d| json!({"@odata.id": format!("/redfish/v1/Managers/1/VM/{d}")}));
                Json(json!({ "Members": members })).into_response()
            }
            (&Method::GET, "/redfish/v1/Managers/1/VM/Floppy") => {
                Json(json!({"MediaTypes": ["Floppy"]})).into_response()
            }
            (&Method::GET, "/redfish/v1/Managers/1/VM/Cd") => Json(json!({
                "MediaTypes": ["CD", "DVD"],
                "Image": self.image,
                "Inserted": self.inserted,
                "Actions": {"#VirtualMedia.InsertMedia": {"target": "/redfish/v1/insert"}},
            }))
            .into_response(),
            (&Method::DELETE, "/redfish/v1/SessionService/Sessions/9") => {
                self.open = 0;
                StatusCode::NO_CONTENT.into_response()
            }
            (&Method::PATCH, "/redfish/v1/Systems/1") => {
                self.deaf = 2;
                self.settings(headers, body)
            }
            (&Method::POST, _) => {
                self.deaf = 2;
                self.action(path, body)
            }
            _ => status(StatusCode::NOT_FOUND, "no such resource"),
        }
    }

    fn settings(&mut self, headers: &HeaderMap, body: &Value) -> Response {
        let matches = headers.get("if-match").and_then(|v| v.to_str().ok());
        if self.habits.etags && matches != Some(&format!("\"{}\"", self.etag)) {
            return status(StatusCode::PRECONDITION_FAILED, "etag");
        }
        let boot = &body["Boot"];
        if self.habits.keeps_override && boot["BootSourceOverrideTarget"] == "None" {
            self.changes.push("boot None, refused".to_owned());
            return status(StatusCode::BAD_REQUEST, "None is not allowed");
        }
        let mode = boot.get("BootSourceOverrideMode");
        if self.habits.refuses_mode && mode.is_some() {
            return status(
                StatusCode::BAD_REQUEST,
                "BootSourceOverrideMode is not writable",
            );
        }
        self.changes.push(format!(
            "boot {}",
            boot["BootSourceOverrideTarget"].as_str().unwrap()
        ));
        if !self.habits.needs_mode || mode.is_some() {
            self.target = boot["BootSourceOverrideTarget"].as_str().unwrap().into();
            self.enabled = boot["BootSourceOverrideEnabled"].as_str().unwrap().into();
            self.etag += 1;
        }
        Json(json!({})).into_response()
    }

    fn action(&mut self, path: &str, body: &Value) -> Response {
        match path {
            "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset" => {
                let kind = body["ResetType"].as_str().unwrap();
                self.changes.push(format!("reset {kind}"));
                self.on = kind == "On";
                let image = match self.target.as_str() {
                    _ if self.enabled == "Disabled" => false,
                    "Pxe" => true,
                    "Cd" => self.inserted,
                    _ => false,
                };
                self.machine.set_power(self.on, image);
                if self.on && self.enabled == "Once" && !self.habits.keeps_override {
                    self.enabled = "Disabled".into();
                }
                (
                    StatusCode::ACCEPTED,
                    [("location", "/redfish/v1/TaskService/Tasks/1")],
                )
                    .into_response()
            }
            "/redfish/v1/insert" => {
                if self.habits.sticky && body.as_object().unwrap().len() > 1 {
                    return status(StatusCode::BAD_REQUEST, "Inserted is not known");
                }
                self.image = body["Image"].as_str().unwrap().into();
                self.changes.push("insert".into());
                self.inserted = true;
                StatusCode::NO_CONTENT.into_response()
            }
            "/redfish/v1/Managers/1/VM/Cd/Actions/VirtualMedia.EjectMedia" => {
                if self.habits.keeps_image && self.machine.installations() > 0 {
                    self.changes.push("eject, refused".into());
                    return status(StatusCode::BAD_REQUEST, "in use");
                }
                self.changes.push("eject".into());
                self.etag += 1;
                self.inserted = false;
                if !self.habits.sticky {
                    self.image.clear();
                }
                StatusCode::OK.into_response()
            }
            _ => status(StatusCode::NOT_FOUND, "no such action"),
        }
    }
}
