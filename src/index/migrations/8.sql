-- The list of images and the catalog are read in their order, from where the page before ended.
CREATE INDEX tags_by_reference ON tags (repository || '/' || name || ':' || tag);
CREATE INDEX manifests_by_reference ON manifests (repository || '/' || name
    || CASE length(digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || lower(hex(digest)));

-- Whether the catalog lists the name of a row: where its manifest is visible in the repository, and not only to clients
-- with credentials of their own (scope 1).
ALTER TABLE tags ADD COLUMN is_listed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE manifests ADD COLUMN is_listed INTEGER NOT NULL DEFAULT 0;
UPDATE tags SET is_listed = 1 WHERE EXISTS (SELECT 1 FROM visibility
    WHERE visibility.digest = tags.digest AND visibility.repository = tags.repository AND scope <> 1);
UPDATE manifests SET is_listed = 1 WHERE EXISTS (SELECT 1 FROM visibility
    WHERE visibility.digest = manifests.digest AND visibility.repository = manifests.repository AND scope <> 1);
CREATE INDEX tags_listed ON tags (repository, name) WHERE is_listed;
CREATE INDEX manifests_listed ON manifests (repository, name) WHERE is_listed;
CREATE TRIGGER visibility_added AFTER INSERT ON visibility WHEN NEW.scope <> 1 BEGIN
    UPDATE tags SET is_listed = 1 WHERE digest = NEW.digest AND repository = NEW.repository AND NOT is_listed;
    UPDATE manifests SET is_listed = 1 WHERE digest = NEW.digest AND repository = NEW.repository AND NOT is_listed;
END;
CREATE TRIGGER visibility_removed AFTER DELETE ON visibility WHEN OLD.scope <> 1 AND NOT EXISTS (
    SELECT 1 FROM visibility WHERE repository = OLD.repository AND digest = OLD.digest AND scope <> 1) BEGIN
    UPDATE tags SET is_listed = 0 WHERE digest = OLD.digest AND repository = OLD.repository AND is_listed;
    UPDATE manifests SET is_listed = 0 WHERE digest = OLD.digest AND repository = OLD.repository AND is_listed;
END;

-- What is bounded is counted as it comes and goes: rows of tags and of manifests by repository, bytes of lists by name,
-- bytes of URLs (their heads, and 512 for each row).
CREATE TABLE shares (
    kind TEXT NOT NULL,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (kind, repository, name)
) WITHOUT ROWID;
CREATE INDEX shares_by_amount ON shares (kind, amount);
CREATE TABLE totals (kind TEXT PRIMARY KEY, amount INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO shares SELECT 'tags', repository, '', count(*) FROM tags GROUP BY repository;
INSERT INTO shares SELECT 'manifests', repository, '', count(*) FROM manifests GROUP BY repository;
INSERT INTO shares SELECT 'listings', repository, name, sum(bytes) FROM listings GROUP BY repository, name;
INSERT INTO totals SELECT 'tags', count(*) FROM tags;
INSERT INTO totals SELECT 'manifests', count(*) FROM manifests;
INSERT INTO totals SELECT 'listings', coalesce(sum(bytes), 0) FROM listings;
INSERT INTO totals SELECT 'urls', coalesce(sum(length(head) + 512), 0) FROM urls;

CREATE TRIGGER shares_changed AFTER UPDATE OF amount ON shares BEGIN
    UPDATE totals SET amount = amount + NEW.amount - OLD.amount WHERE kind = NEW.kind;
    DELETE FROM shares
        WHERE kind = NEW.kind AND repository = NEW.repository AND name = NEW.name AND NEW.amount <= 0;
END;
CREATE TRIGGER tags_added AFTER INSERT ON tags BEGIN
    INSERT OR IGNORE INTO shares VALUES ('tags', NEW.repository, '', 0);
    UPDATE shares SET amount = amount + 1 WHERE kind = 'tags' AND repository = NEW.repository AND name = '';
END;
CREATE TRIGGER tags_removed AFTER DELETE ON tags BEGIN
    UPDATE shares SET amount = amount - 1 WHERE kind = 'tags' AND repository = OLD.repository AND name = '';
END;
CREATE TRIGGER manifests_added AFTER INSERT ON manifests BEGIN
    INSERT OR IGNORE INTO shares VALUES ('manifests', NEW.repository, '', 0);
    UPDATE shares SET amount = amount + 1 WHERE kind = 'manifests' AND repository = NEW.repository AND name = '';
END;
CREATE TRIGGER manifests_removed AFTER DELETE ON manifests BEGIN
    UPDATE shares SET amount = amount - 1 WHERE kind = 'manifests' AND repository = OLD.repository AND name = '';
END;
CREATE TRIGGER listings_added AFTER INSERT ON listings BEGIN
    INSERT OR IGNORE INTO shares VALUES ('listings', NEW.repository, NEW.name, 0);
    UPDATE shares SET amount = amount + NEW.bytes
        WHERE kind = 'listings' AND repository = NEW.repository AND name = NEW.name;
END;
CREATE TRIGGER listings_changed AFTER UPDATE OF bytes ON listings BEGIN
    UPDATE shares SET amount = amount + NEW.bytes - OLD.bytes
        WHERE kind = 'listings' AND repository = NEW.repository AND name = NEW.name;
END;
CREATE TRIGGER listings_removed AFTER DELETE ON listings BEGIN
    UPDATE shares SET amount = amount - OLD.bytes
        WHERE kind = 'listings' AND repository = OLD.repository AND name = OLD.name;
END;
CREATE TRIGGER urls_added AFTER INSERT ON urls BEGIN
    UPDATE totals SET amount = amount + length(NEW.head) + 512 WHERE kind = 'urls';
END;
CREATE TRIGGER urls_changed AFTER UPDATE OF head ON urls BEGIN
    UPDATE totals SET amount = amount + length(NEW.head) - length(OLD.head) WHERE kind = 'urls';
END;
CREATE TRIGGER urls_removed AFTER DELETE ON urls BEGIN
    UPDATE totals SET amount = amount - length(OLD.head) - 512 WHERE kind = 'urls';
END;

-- The oldest rows of a repository go first.
CREATE INDEX tags_by_age ON tags (repository, checked_at);
CREATE INDEX manifests_by_age ON manifests (repository, noted_at);
