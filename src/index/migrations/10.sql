-- Who may see an object stands beside it: what is looked up, noted and removed is always one object's. So far each row
-- was in an index by digest, too, at another place.
CREATE TABLE shown (
    digest BLOB NOT NULL,
    repository TEXT NOT NULL,
    scope INTEGER NOT NULL,
    PRIMARY KEY (digest, repository, scope)
) WITHOUT ROWID;
INSERT INTO shown (digest, repository, scope)
    SELECT digest, repository, scope FROM visibility ORDER BY digest, repository, scope;
DROP TABLE visibility;
ALTER TABLE shown RENAME TO visibility;
CREATE TRIGGER visibility_added AFTER INSERT ON visibility WHEN NEW.scope <> 1 BEGIN
    UPDATE tags SET is_listed = 1 WHERE digest = NEW.digest AND repository = NEW.repository AND NOT is_listed;
    UPDATE manifests SET is_listed = 1 WHERE digest = NEW.digest AND repository = NEW.repository AND NOT is_listed;
END;
CREATE TRIGGER visibility_removed AFTER DELETE ON visibility WHEN OLD.scope <> 1 AND NOT EXISTS (
    SELECT 1 FROM visibility WHERE repository = OLD.repository AND digest = OLD.digest AND scope <> 1) BEGIN
    UPDATE tags SET is_listed = 0 WHERE digest = OLD.digest AND repository = OLD.repository AND is_listed;
    UPDATE manifests SET is_listed = 0 WHERE digest = OLD.digest AND repository = OLD.repository AND is_listed;
END;
