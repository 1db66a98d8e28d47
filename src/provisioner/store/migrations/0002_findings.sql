-- The warm spares that do not pass a director's checks (JSON), by name: why, and when it said so last.
ALTER TABLE director ADD COLUMN findings TEXT NOT NULL DEFAULT '{}';
