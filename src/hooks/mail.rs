//! Events as a mail, over a relay.

use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor,
    address::Envelope,
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Identity, Tls, TlsParameters},
        extension::ClientId,
    },
};

use super::{Error, letter, pile::Parcel};
use crate::{
    clock,
    model::{Mail, Relay, RelayTls, TlsOptions, Verify},
    prepare::{self, Unprepared},
};

/// What the hook names on this host, read.
#[derive(Debug)]
pub(super) struct Ready {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    envelope: Envelope,
}

impl Ready {
    /// Reads. Blocks.
    pub(super) fn read(mail: &Mail) -> Result<Self, Unprepared> {
        let relay = &mail.relay;
        let tls = match &relay.tls {
            RelayTls::None => Tls::None,
            RelayTls::Starttls(options) => Tls::Required(parameters(relay, options)?),
            RelayTls::Implicit(options) => Tls::Wrapper(parameters(relay, options)?),
        };
        let mut builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(relay.host.clone())
                .port(relay.port)
                .timeout(Some(relay.timeout))
                .tls(tls);
        if let Some(name) = &relay.ehlo {
            builder = builder.hello_name(ClientId::Domain(name.clone()));
        }
        if let Some(path) = &relay.credentials {
            let (user, password) = prepare::credentials(path)?;
            builder = builder.credentials(Credentials::new(user, password));
        }
        let to: Result<Vec<_>, _> = mail.to.iter().map(|to| address(to)).collect();
        let envelope = Envelope::new(Some(address(&relay.from)?), to?);
        Ok(Self {
            transport: builder.build(),
            envelope: envelope.map_err(|e| Unprepared::Option(e.to_string()))?,
        })
    }

    /// Tells of a parcel, over a connection of its own.
    pub(super) async fn send(&self, mail: &Mail, parcel: &Parcel) -> Result<(), Error> {
        let letter = letter::letter(mail, parcel, clock::wall());
        let sent = self.transport.send_raw(&self.envelope, &letter).await;
        // Its text has its causes in it.
        sent.map(drop).map_err(|e| Error::Relay(e.to_string()))
    }
}

fn address(text: &str) -> Result<Address, Unprepared> {
    let address: Result<Address, _> = text.parse();
    address.map_err(|e| Unprepared::Option(format!("{text:?} is no mail address: {e}")))
}

fn parameters(relay: &Relay, options: &TlsOptions) -> Result<TlsParameters, Unprepared> {
    let bad = |e: lettre::transport::smtp::Error| Unprepared::Option(e.to_string());
    let name = options.sni.clone().unwrap_or_else(|| relay.host.clone());
    let mut builder = TlsParameters::builder(name);
    match &options.verify {
        Verify::System => {}
        Verify::Ca(path) => {
            let authorities = Certificate::from_pem(&prepare::read(path)?).map_err(bad)?;
            builder = builder
                .certificate_store(CertificateStore::None)
                .add_root_certificate(authorities);
        }
        // No configuration that was read has a pin here.
        Verify::Pin(_) => {
            return Err(Unprepared::Option(
                "a relay's certificate cannot be pinned: name its authority with ca".to_owned(),
            ));
        }
        Verify::Off => builder = builder.dangerous_accept_invalid_certs(true),
    }
    if let Some((chain, key)) = &options.client {
        let (chain, key) = (prepare::resolve(chain), prepare::resolve(key));
        let identity = Identity::from_pem(&prepare::read(&chain)?, &prepare::read(&key)?);
        builder = builder.identify_with(identity.map_err(bad)?);
    }
    builder.build().map_err(bad)
}
