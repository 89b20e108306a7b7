//! The registries that Larder knows without a configuration.

/// The prefix of the repository that serves names which no other rule matches, if there is a repository of this prefix.
pub const BUILT_IN_DEFAULT: &str = "docker.io";

/// Repositories that exist unless `server.builtin_repositories` is false: prefix, upstream and values of `?ns=`.
pub const BUILT_IN: [(&str, &str, &[&str]); 10] = [
    (BUILT_IN_DEFAULT, "https://registry-1.docker.io", &["docker.io", "index.docker.io", "registry-1.docker.io"]),
    ("ghcr.io", "https://ghcr.io", &["ghcr.io"]),
    ("quay.io", "https://quay.io", &["quay.io"]),
    ("registry.k8s.io", "https://registry.k8s.io", &["registry.k8s.io"]),
    ("gcr.io", "https://gcr.io", &["gcr.io"]),
    ("mcr.microsoft.com", "https://mcr.microsoft.com", &["mcr.microsoft.com"]),
    ("public.ecr.aws", "https://public.ecr.aws", &["public.ecr.aws"]),
    ("registry.gitlab.com", "https://registry.gitlab.com", &["registry.gitlab.com"]),
    ("lscr.io", "https://lscr.io", &["lscr.io"]),
    ("nvcr.io", "https://nvcr.io", &["nvcr.io"]),
];

/// Host names under which Docker Hub serves its registry.
pub const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
