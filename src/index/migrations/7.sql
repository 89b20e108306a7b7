-- Who may see an object is a repository in a scope: 0 where Larder's own credentials were shown it, 1 where those of
-- clients were, 2 where it is for everybody. So far the scope stood behind the repository's name.
CREATE TABLE scoped (
    repository TEXT NOT NULL,
    scope INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (repository, scope, digest)
) WITHOUT ROWID;
INSERT INTO scoped (repository, scope, digest)
    SELECT substr(repository, 1, length(repository) - 11), 1, digest FROM visibility
        WHERE substr(repository, -11) = ' by clients'
    UNION ALL SELECT substr(repository, 1, length(repository) - 10), 2, digest FROM visibility
        WHERE substr(repository, -10) = ' in public'
    UNION ALL SELECT repository, 0, digest FROM visibility
        WHERE substr(repository, -11) <> ' by clients' AND substr(repository, -10) <> ' in public';
DROP TABLE visibility;
ALTER TABLE scoped RENAME TO visibility;
CREATE INDEX visibility_by_digest ON visibility (digest);
