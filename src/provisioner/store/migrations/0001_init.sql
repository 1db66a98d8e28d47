-- One schema for SQLite (3.35 and later) and PostgreSQL (12 and later): TEXT ids, BIGINT unix
-- milliseconds, BIGINT 0/1 for truth, JSON as TEXT; no serials, no engine's own types.

-- Counters. 'fence' is seeded with the wall clock when the store is made, so that a store that was lost and made anew
-- is still above every fence the spares have seen. 'born' is the wall clock when it was made. 'work' moves with every change that may let a
-- waiting replacement go on.
CREATE TABLE meta (
  name  TEXT   NOT NULL PRIMARY KEY,
  value BIGINT NOT NULL
);

-- gateways and clients are lists of addresses.
CREATE TABLE role (
  code     TEXT   NOT NULL PRIMARY KEY,
  domain   TEXT   NOT NULL,
  os       TEXT   NOT NULL,
  gateways TEXT   NOT NULL,
  clients  TEXT   NOT NULL,
  -- Which spares it takes, JSON.
  spares   TEXT   NOT NULL,
  install  BIGINT NOT NULL CHECK (install IN (0, 1))
);

-- What installs an operating system.
CREATE TABLE image (
  os      TEXT NOT NULL PRIMARY KEY,
  payload TEXT NOT NULL
);

-- The catalogue: a role's software in the order of installation.
CREATE TABLE role_software (
  role     TEXT   NOT NULL REFERENCES role (code) ON DELETE CASCADE,
  ord      BIGINT NOT NULL,
  software TEXT   NOT NULL,
  PRIMARY KEY (role, ord)
);

-- The script database; os is '' where a script is for any; needs and secrets are lists of names.
CREATE TABLE script (
  software        TEXT   NOT NULL,
  os              TEXT   NOT NULL,
  ord             BIGINT NOT NULL,
  body            TEXT   NOT NULL,
  timeout_ms      BIGINT NOT NULL,
  check_command   TEXT,
  running_command TEXT,
  start_command   TEXT,
  reload_command  TEXT,
  needs           TEXT   NOT NULL,
  secrets         TEXT   NOT NULL,
  PRIMARY KEY (software, os)
);

-- The service configuration table.
CREATE TABLE service_config (
  domain   TEXT   NOT NULL,
  software TEXT   NOT NULL,
  path     TEXT   NOT NULL,
  ord      BIGINT NOT NULL,
  body     TEXT   NOT NULL,
  template BIGINT NOT NULL CHECK (template IN (0, 1)),
  mode     BIGINT NOT NULL,
  owner    TEXT   NOT NULL,
  grp      TEXT   NOT NULL,
  validate TEXT,
  PRIMARY KEY (domain, software, path)
);

-- The pool. files_role is what the files said last; what a server holds now is in role_assignment. maintenance is
-- the reason; quarantines counts them since it was last released by hand; trouble is what the last rehearsal found;
-- warm (JSON) what it was configured for beforehand; clean_after the role after which it is to be cleaned; placed
-- (JSON) the files that were placed there since it was clean.
-- learnt_keys are the host keys read from it after an installation; they go before host_keys until the
-- files change those. installation is how far the newest installation has come, its driver's words.
CREATE TABLE server (
  name        TEXT   NOT NULL PRIMARY KEY,
  ssh_address TEXT   NOT NULL,
  ssh_port    BIGINT NOT NULL,
  host_keys   TEXT   NOT NULL,
  learnt_keys TEXT   NOT NULL,
  driver      TEXT   NOT NULL,
  wipe        BIGINT NOT NULL CHECK (wipe IN (0, 1)),
  installation TEXT,
  files_role  TEXT,
  state       TEXT   NOT NULL CHECK (state IN ('enrolled', 'ready', 'claimed', 'configuring', 'testing', 'standby', 'serving', 'failed', 'quarantined', 'cleaning')),
  reason      TEXT,
  os_seen     TEXT,
  replacement TEXT,
  labels            TEXT   NOT NULL,
  reserved_for      TEXT   NOT NULL,
  maintenance       TEXT,
  quarantined_until BIGINT,
  quarantines       BIGINT NOT NULL,
  failed_ms         BIGINT,
  rehearsed_ms      BIGINT,
  rehearsing_until  BIGINT,
  trouble           TEXT,
  warm              TEXT,
  clean_after       TEXT,
  placed            TEXT   NOT NULL,
  CHECK (state NOT IN ('claimed', 'configuring', 'testing') OR replacement IS NOT NULL)
);

CREATE TABLE server_address (
  address TEXT   NOT NULL PRIMARY KEY,
  server  TEXT   NOT NULL REFERENCES server (name) ON DELETE CASCADE,
  ord     BIGINT NOT NULL
);

-- The role database: source is 'files' or the id of the replacement that gave the role; passed_on is
-- the replacement that gave it to another server because this one failed.
CREATE TABLE role_assignment (
  address   TEXT NOT NULL PRIMARY KEY,
  role      TEXT NOT NULL,
  server    TEXT NOT NULL,
  source    TEXT NOT NULL,
  passed_on TEXT
);

-- version counts the changes of a director's stand-ins.
CREATE TABLE director (
  name          TEXT   NOT NULL PRIMARY KEY,
  address       TEXT   NOT NULL,
  registration  TEXT   NOT NULL,
  version       BIGINT NOT NULL,
  registered_ms BIGINT NOT NULL
);

-- Work on servers: a spare for a failed server, a spare made ready beforehand, a server cleaned; the last two have no
-- failed server, and their server's name in slot. Else slot is the failed server's name, or the address where the inventory knows no such server; origin
-- the configured server whose place it is, origins all its addresses, whatever becomes of it in the
-- inventory; role what the spare was configured as. owner is the run of a provisioner that works on it, host that
-- provisioner's name; until lease_until nobody else may, and whoever does then has a higher fence.
CREATE TABLE replacement (
  id            TEXT   NOT NULL PRIMARY KEY,
  kind          TEXT   NOT NULL CHECK (kind IN ('replace', 'warm', 'clean')),
  first_key     TEXT   NOT NULL,
  director      TEXT   REFERENCES director (name),
  failed        TEXT,
  slot          TEXT   NOT NULL,
  origin        TEXT,
  origins       TEXT   NOT NULL,
  role          TEXT,
  state         TEXT   NOT NULL CHECK (state IN ('pending', 'claiming', 'configuring', 'testing', 'attaching', 'succeeded', 'failed', 'cancelled', 'superseded', 'refused')),
  reason        TEXT,
  rejected      TEXT   NOT NULL,
  cancel        BIGINT NOT NULL CHECK (cancel IN (0, 1)),
  fence         BIGINT NOT NULL,
  owner         TEXT,
  host          TEXT,
  lease_until   BIGINT NOT NULL,
  supersedes    TEXT,
  superseded_by TEXT,
  version       BIGINT NOT NULL,
  created_ms    BIGINT NOT NULL,
  ended_ms      BIGINT,
  UNIQUE (director, first_key),
  CHECK (kind <> 'replace' OR (director IS NOT NULL AND failed IS NOT NULL AND origin IS NOT NULL))
);

-- One live replacement for a failed server, whoever asks.
CREATE UNIQUE INDEX replacement_live ON replacement (slot)
  WHERE state IN ('pending', 'claiming', 'configuring', 'testing', 'attaching');

-- The idempotency keys that were taken, each its director's alone, with what it asked. Of many keys for one replacement
-- the newest ones.
CREATE TABLE request (
  director    TEXT   NOT NULL REFERENCES director (name),
  key         TEXT   NOT NULL,
  body        TEXT   NOT NULL,
  replacement TEXT   NOT NULL REFERENCES replacement (id),
  at_ms       BIGINT NOT NULL,
  PRIMARY KEY (director, key)
);

CREATE INDEX request_of_replacement ON request (replacement, director);

-- A spare in the hand of a replacement. failed_step and failed_code say what its last failure was: two
-- spares that fail in the same place stop the role.
CREATE TABLE attempt (
  replacement TEXT   NOT NULL REFERENCES replacement (id),
  number      BIGINT NOT NULL,
  server      TEXT   NOT NULL,
  state       TEXT   NOT NULL CHECK (state IN ('open', 'serving', 'failed', 'passed_over', 'abandoned', 'superseded', 'finished')),
  reason      TEXT,
  role        TEXT   NOT NULL,
  failed_step TEXT,
  failed_code TEXT,
  started_ms  BIGINT NOT NULL,
  ended_ms    BIGINT,
  PRIMARY KEY (replacement, number)
);

-- No spare in two hands, no two spares in one.
CREATE UNIQUE INDEX attempt_of_server ON attempt (server) WHERE state IN ('open', 'serving');
CREATE UNIQUE INDEX attempt_of_replacement ON attempt (replacement) WHERE state IN ('open', 'serving');

CREATE INDEX attempt_of_role ON attempt (role, ended_ms);

-- What spares of a role came to before this does not count any more.
CREATE TABLE role_trial (
  role     TEXT   NOT NULL PRIMARY KEY,
  since_ms BIGINT NOT NULL
);

-- The journal: the steps as planned (payload, and its SHA-256) and how far each has come. output is
-- text, compressed as zlib does.
CREATE TABLE step (
  replacement TEXT   NOT NULL,
  attempt     BIGINT NOT NULL,
  position    BIGINT NOT NULL,
  name        TEXT   NOT NULL,
  payload     TEXT   NOT NULL,
  digest      TEXT   NOT NULL,
  limit_ms    BIGINT NOT NULL,
  state       TEXT   NOT NULL CHECK (state IN ('planned', 'running', 'done', 'failed')),
  tries       BIGINT NOT NULL,
  failures    BIGINT NOT NULL,
  fence       BIGINT NOT NULL,
  started_ms  BIGINT,
  ended_ms    BIGINT,
  detail      TEXT   NOT NULL,
  output      BYTEA,
  PRIMARY KEY (replacement, attempt, position),
  FOREIGN KEY (replacement, attempt) REFERENCES attempt (replacement, number)
);

-- Which director is to have which stand-in in service, and what it said last.
CREATE TABLE attachment (
  director    TEXT NOT NULL REFERENCES director (name),
  replacement TEXT NOT NULL REFERENCES replacement (id),
  want        TEXT NOT NULL CHECK (want IN ('attach', 'withdraw')),
  confirmed   TEXT CHECK (confirmed IN ('attach', 'withdraw')),
  PRIMARY KEY (director, replacement)
);

-- The audit trail: append-only, which a trigger of each engine's own kind sees to. kind and reason are words that
-- later versions keep; server is an address, origin where actor spoke from.
CREATE TABLE event (
  number      BIGINT NOT NULL PRIMARY KEY,
  at_ms       BIGINT NOT NULL,
  kind        TEXT   NOT NULL,
  actor       TEXT   NOT NULL,
  origin      TEXT,
  director    TEXT,
  replacement TEXT,
  server      TEXT,
  reason      TEXT   NOT NULL,
  detail      TEXT   NOT NULL
);
CREATE INDEX event_of ON event (replacement, number);
