//! Who logs in.

use std::{fmt, path::Path};

use super::super::{Unprepared, tls};
use crate::{model::LoginCheck, prepare};

/// Named to a server where nobody may log in: it says in its log who that was.
pub(super) const NOBODY: &str = "understudy";

/// A user and a password that no log ever shows.
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// What every check that may log in has.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) login: Option<Login>,
    pub(super) database: Option<String>,
    pub(super) tls: Option<tls::Client>,
}

impl Access {
    /// `alpn` names the protocol in TLS, where it has a name.
    pub(super) fn prepare(options: &LoginCheck, alpn: &[&[u8]]) -> Result<Self, Unprepared> {
        let client = |options| tls::Client::prepare(options, alpn);
        Ok(Self {
            login: Login::prepare(options.credentials.as_deref())?,
            database: options.database.clone(),
            tls: options.tls.as_ref().map(client).transpose()?,
        })
    }
}

impl Login {
    /// Reads a file of credentials, if there is one.
    fn prepare(path: Option<&Path>) -> Result<Option<Self>, Unprepared> {
        let Some(path) = path else {
            return Ok(None);
        };
        let (user, password) = prepare::credentials(path)?;
        if user.contains('\0') || password.contains('\0') {
            // The databases' messages end their texts by it.
            return Err(Unprepared::Content {
                path: path.to_owned(),
                what: "a zero byte stands in its first line".to_owned(),
            });
        }
        Ok(Some(Self { user, password }))
    }
}
