//! What proves a daemon to the others of its kind.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    config::TlsFiles, prepare::Unprepared, supervise::Supervisor,
    telemetry::metrics::CertificateMetrics, tls,
};

/// Reads it, and keeps it as its files say for as long as `tasks` run.
///
/// # Errors
/// What of the files is not as it has to be.
pub(super) fn keep<T: tls::Identity>(
    files: TlsFiles,
    counted: &CertificateMetrics,
    tasks: &mut Supervisor,
) -> Result<watch::Receiver<Arc<T>>, Unprepared> {
    let read = T::read(&files)?;
    counted.told(tls::Told::Renewed(read.ends()));
    let now = watch::Sender::new(Arc::new(read));
    let (identity, counted) = (now.subscribe(), counted.clone());
    tasks.start("identity", |stop| {
        let tell = move |what| counted.told(what);
        tls::keep(files, now, tls::EVERY, tell, stop)
    });
    Ok(identity)
}
