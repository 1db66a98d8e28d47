//! A TLS handshake succeeds, and the server's certificate holds.

use super::{
    super::{Unprepared, call::Call, tls::Client},
    Kind,
};
use crate::model::{FailReason, TlsOptions};

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Tls {
    client: Client,
}

impl Kind for Tls {
    type Options = TlsOptions;

    fn prepare(options: &TlsOptions) -> Result<Self, Unprepared> {
        let client = Client::prepare(options, &[])?;
        Ok(Self { client })
    }

    /// In TLS 1.3 a server that wants a certificate of ours refuses only after the handshake: that is
    /// not waited for.
    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let stream = call.connect().await?;
        self.client.handshake(call, stream).await.map(drop)
    }
}
