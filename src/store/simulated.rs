//! A store in memory that fails as disks do, to test what the cache makes of that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;

use super::*;

use crate::clock;

/// The state of a simulated store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Well,
    /// Each call takes this long.
    Slow(Duration),
    /// Each call fails.
    Failing(io::ErrorKind),
    /// Nothing can be stored; everything else works.
    Full,
    /// Content to be stored is cut in the middle, and the call fails.
    Torn,
    /// A call ends only when its deadline passes, as calls of [`LocalStore`] do on a disk that does not answer.
    Hanging,
    /// It claims that what it stores is durable. After [`Simulated::lose_power`], only the first half of each object is
    /// there.
    Lying,
}

/// How long each call of a hanging store takes until it fails.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// A store in memory; clones share it.
#[derive(Clone, Default)]
pub struct Simulated(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    health: Health,
    objects: HashMap<Digest, Kept>,
}

#[derive(Clone)]
struct Kept {
    content: Bytes,
    /// The size with which the object was sealed.
    sealed_size: Option<usize>,
    is_durable: bool,
}

impl Simulated {
    /// Sets the state of the store.
    pub fn set(&self, health: Health) {
        self.state().health = health;
    }

    /// Cuts objects that were not durable in half, as a power cut leaves files on a disk that lied.
    pub fn lose_power(&self) {
        for kept in self.state().objects.values_mut().filter(|kept| !kept.is_durable) {
            kept.content.truncate(kept.content.len() / 2);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// Waits or fails, as the health says.
    async fn suffer(&self) -> io::Result<()> {
        let health = self.state().health;
        match health {
            Health::Slow(time) => tokio::time::sleep(time).await,
            Health::Failing(kind) => return Err(kind.into()),
            Health::Hanging => {
                tokio::time::sleep(DEADLINE).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            Health::Well | Health::Full | Health::Torn | Health::Lying => {}
        }
        Ok(())
    }

    fn keep(&self, digest: Digest, mut content: Bytes) -> io::Result<bool> {
        let mut state = self.state();
        let (is_sealed, is_durable) = match state.health {
            Health::Full => return Err(io::ErrorKind::StorageFull.into()),
            Health::Torn => (false, true),
            Health::Lying => (true, false),
            _ => (true, true),
        };
        if state.health == Health::Torn {
            content.truncate(content.len() / 2);
        }
        let is_torn = state.health == Health::Torn;
        let sealed_size = is_sealed.then_some(content.len());
        let before = state.objects.insert(digest, Kept { content, sealed_size, is_durable });
        if is_torn { Err(io::ErrorKind::Other.into()) } else { Ok(before.is_none()) }
    }

    fn mark(&self, object: &Object, is_sealed: bool) {
        let Body::Read(content, _) = &object.body else {
            return;
        };
        for kept in self.state().objects.values_mut().filter(|kept| kept.content == *content) {
            kept.sealed_size = is_sealed.then_some(kept.content.len());
        }
    }
}

impl Store for Simulated {
    fn open<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<Option<Object>>> {
        async move {
            self.suffer().await?;
            let found = self.state().objects.get(digest).cloned();
            Ok(found.map(|kept| Object {
                size: kept.content.len() as u64,
                since: clock::wall(),
                // The seal depends on the size, too.
                is_sealed: kept.sealed_size == Some(kept.content.len()),
                body: Body::Read(kept.content, None),
            }))
        }
        .boxed()
    }

    fn put<'a>(&'a self, digest: &'a Digest, content: Bytes) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            self.suffer().await?;
            self.keep(*digest, content)
        }
        .boxed()
    }

    fn publish<'a>(&'a self, from: Partial, digest: &'a Digest, size: u64) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            self.suffer().await?;
            let content = from.reader().read(0, size).await?;
            from.discard().await?;
            self.keep(*digest, content)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, digests: &'a [Digest]) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.suffer().await?;
            self.state().objects.retain(|digest, _| !digests.contains(digest));
            Ok(())
        }
        .boxed()
    }

    fn clear(&self) -> BoxFuture<'_, io::Result<()>> {
        async move {
            self.suffer().await?;
            self.state().objects.clear();
            Ok(())
        }
        .boxed()
    }

    fn contains<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            self.suffer().await?;
            Ok(self.state().objects.contains_key(digest))
        }
        .boxed()
    }

    fn list(&self) -> Walk {
        let (sender, receiver) = mpsc::channel(1);
        let store = self.clone();
        tokio::spawn(async move {
            if let Err(error) = store.suffer().await {
                return drop(sender.send(Err(error)).await);
            }
            let objects: Vec<_> =
                store.state().objects.iter().map(|(digest, kept)| (*digest, kept.content.len())).collect();
            for (digest, size) in objects {
                let listed = Listed { digest, size: size as u64, since: clock::wall() };
                if sender.send(Ok(listed)).await.is_err() {
                    return;
                }
            }
        });
        Walk(receiver)
    }

    fn capacity(&self) -> BoxFuture<'_, io::Result<Capacity>> {
        async move {
            self.suffer().await?;
            let free = if self.state().health == Health::Full { 0 } else { 1 << 39 };
            Ok(Capacity { total: 1 << 40, free })
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, io::Result<()>> {
        async move {
            self.suffer().await?;
            match self.state().health {
                Health::Full => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn seal<'a>(&'a self, object: &'a Object, _: &'a Digest) -> BoxFuture<'a, io::Result<()>> {
        self.mark(object, true);
        std::future::ready(Ok(())).boxed()
    }

    fn unseal<'a>(&'a self, object: &'a Object) -> BoxFuture<'a, io::Result<()>> {
        self.mark(object, false);
        std::future::ready(Ok(())).boxed()
    }
}
