//! What the tables say, read beside the provisioners and without their code.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgPool, Row as _};

/// The database of the provisioners.
pub(crate) struct Ledger {
    pub(crate) pool: PgPool,
    /// How often it was looked at.
    pub(crate) looks: usize,
    pub(crate) faults: BTreeSet<String>,
}

/// Two columns of text.
type Pairs = Vec<(String, String)>;

impl Ledger {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            looks: 0,
            faults: BTreeSet::new(),
        }
    }

    async fn pairs(&self, query: &'static str) -> Pairs {
        let rows = sqlx::query(query).fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|r| (r.get(0), r.get(1))).collect()
    }

    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        let row = sqlx::query(query).fetch_one(&self.pool).await.unwrap();
        row.get(0)
    }

    /// Its one column of text.
    pub(crate) async fn texts(&self, query: &'static str) -> Vec<String> {
        let rows = sqlx::query(query).fetch_all(&self.pool).await.unwrap();
        rows.iter().map(|r| r.get(0)).collect()
    }

    /// Looks whether a failure has two spares, or a spare two roles, at this moment.
    pub(crate) async fn look(&mut self) {
        self.looks += 1;
        let hands = self
            .pairs("SELECT replacement, server FROM attempt WHERE state IN ('open', 'serving')")
            .await;
        self.once(&hands, "in hand");
        let roles = self
            .pairs("SELECT source, server FROM role_assignment WHERE source <> 'files'")
            .await;
        self.once(&roles, "of a role");
        let busy = self
            .pairs(
                "SELECT replacement, name FROM server WHERE replacement IS NOT NULL \
                 AND state IN ('claimed', 'configuring', 'testing', 'serving')",
            )
            .await;
        self.once(&busy, "busy");
        let places = self
            .pairs(
                "SELECT failed, id FROM replacement WHERE kind = 'replace' AND state IN \
                 ('pending', 'claiming', 'configuring', 'testing', 'attaching', 'succeeded')",
            )
            .await;
        self.once(&places, "replacement");
    }

    /// Each on the left has one on the right, and the other way round.
    fn once(&mut self, pairs: &Pairs, what: &str) {
        let mut sides = [BTreeMap::new(), BTreeMap::new()];
        for (left, right) in pairs {
            let [lefts, rights] = &mut sides;
            for (side, one, other) in [(lefts, left, right), (rights, right, left)] {
                if let Some(before) = side.insert(one, other) {
                    let fault = format!("{what}: {one} has {before} and {other}");
                    self.faults.insert(fault);
                }
            }
        }
    }

    /// Everything that was ever begun on a spare for a failure: spare, role, failed server, in order.
    pub(crate) async fn begun(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let rows = sqlx::query(
            "SELECT a.server, a.role, r.failed FROM attempt a JOIN replacement r ON r.id = a.replacement \
             WHERE r.kind = 'replace' ORDER BY a.started_ms, r.id",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut begun: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for row in rows {
            let of = begun.entry(row.get(0)).or_default();
            of.push((row.get(1), row.get(2)));
        }
        begun
    }

    /// When spares were claimed for failures, in milliseconds, as the audit trail has it.
    pub(crate) async fn claims(&self) -> Vec<i64> {
        let rows = sqlx::query(
            "SELECT at_ms FROM event WHERE reason = 'claimed' AND replacement NOT LIKE 'clean-%' ORDER BY number",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        rows.iter().map(|r| r.get(0)).collect()
    }

    /// How often each word stands in the audit trail.
    pub(crate) async fn trail(&self) -> BTreeMap<String, i64> {
        let rows = sqlx::query("SELECT reason, count(*) FROM event GROUP BY reason")
            .fetch_all(&self.pool)
            .await
            .unwrap();
        rows.iter().map(|r| (r.get(0), r.get(1))).collect()
    }

    /// Spares that were given back, are out of service everywhere, and that nobody else cleans.
    pub(crate) async fn dirty(&self) -> Vec<String> {
        self.texts(
            "SELECT s.name FROM server s WHERE s.state = 'failed' AND s.clean_after IS NULL \
             AND s.files_role IS NULL AND NOT EXISTS (SELECT 1 FROM attachment a \
             WHERE a.replacement = s.replacement AND (a.confirmed IS NULL OR a.confirmed <> 'withdraw'))",
        )
        .await
    }
}
