//! The users, in an embedded database. A change is on the disk before it is acknowledged.
//!
//! Two keyspaces, always written in one batch: users by id, and ids by address, so that an address is used only once.

use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use prost::Message;
use weft_contracts::shop::users::v1::User;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{path}: the users can't be opened: {source}", path = .path.display())]
    Open { path: PathBuf, source: fjall::Error },
    #[error("the address is in use")]
    EmailTaken,
    #[error("there is no such user")]
    NotFound,
    #[error("the database failed: {0}")]
    Database(#[from] fjall::Error),
    #[error("a user in the database can't be read: {0}")]
    Corrupt(#[from] prost::DecodeError),
    #[error("the database's task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Users by id and by address. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    users: Keyspace,
    emails: Keyspace,
    /// Held from the check of an address to its write.
    writing: Mutex<()>,
}

/// The changes of an update; a field that is `None` stays as it is.
#[derive(Debug, Default, Clone)]
pub(crate) struct Changes {
    pub(crate) name: Option<String>,
    pub(crate) email: Option<String>,
}

impl Store {
    /// Opens the database in a folder, or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let inner = Inner::open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Keeps a new user. When this returns, the user is on the disk.
    pub(crate) async fn create(&self, user: User) -> Result<User, StoreError> {
        self.run(move |inner| inner.create(user)).await
    }

    pub(crate) async fn get(&self, id: String) -> Result<User, StoreError> {
        self.run(move |inner| inner.get(&id)).await
    }

    /// At most `limit` users after the id `after`, by id, and whether there are more.
    pub(crate) async fn list(&self, after: String, limit: usize) -> Result<(Vec<User>, bool), StoreError> {
        self.run(move |inner| inner.list(&after, limit)).await
    }

    /// Changes a user and returns the changed user.
    pub(crate) async fn update(&self, id: String, changes: Changes) -> Result<User, StoreError> {
        self.run(move |inner| inner.update(&id, changes)).await
    }

    /// Removes a user and returns it as it was.
    pub(crate) async fn delete(&self, id: String) -> Result<User, StoreError> {
        self.run(move |inner| inner.delete(&id)).await
    }

    /// Runs work outside the threads that answer calls, as the database waits for the disk. Work that has started runs
    /// to its end, even if the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await?
    }
}

impl Inner {
    fn open(path: &Path) -> Result<Self, fjall::Error> {
        let database = Database::builder(path).open()?;
        let users = database.keyspace("users", KeyspaceCreateOptions::default)?;
        let emails = database.keyspace("emails", KeyspaceCreateOptions::default)?;
        Ok(Self { database, users, emails, writing: Mutex::new(()) })
    }

    fn create(&self, user: User) -> Result<User, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_email_free(&user.email)?;
        let mut batch = self.batch();
        batch.insert(&self.users, user.id.as_str(), user.encode_to_vec());
        batch.insert(&self.emails, email_key(&user.email), user.id.as_str());
        batch.commit()?;
        Ok(user)
    }

    fn get(&self, id: &str) -> Result<User, StoreError> {
        let bytes = self.users.get(id)?.ok_or(StoreError::NotFound)?;
        Ok(User::decode(&*bytes)?)
    }

    fn list(&self, after: &str, limit: usize) -> Result<(Vec<User>, bool), StoreError> {
        let mut found = Vec::new();
        for entry in self.users.range::<&str, _>((Bound::Excluded(after), Bound::Unbounded)) {
            if found.len() == limit {
                return Ok((found, true));
            }
            found.push(User::decode(&*entry.value()?)?);
        }
        Ok((found, false))
    }

    fn update(&self, id: &str, changes: Changes) -> Result<User, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut user = self.get(id)?;
        let mut batch = self.batch();
        if let Some(email) = changes.email {
            let (old, new) = (email_key(&user.email), email_key(&email));
            if old != new {
                self.check_email_free(&email)?;
                batch.remove(&self.emails, old);
                batch.insert(&self.emails, new, id);
            }
            user.email = email;
        }
        if let Some(name) = changes.name {
            user.name = name;
        }
        batch.insert(&self.users, id, user.encode_to_vec());
        batch.commit()?;
        Ok(user)
    }

    fn delete(&self, id: &str) -> Result<User, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let user = self.get(id)?;
        let mut batch = self.batch();
        batch.remove(&self.users, id);
        batch.remove(&self.emails, email_key(&user.email));
        batch.commit()?;
        Ok(user)
    }

    /// A batch that is on the disk when it is committed.
    fn batch(&self) -> fjall::OwnedWriteBatch {
        self.database.batch().durability(Some(PersistMode::SyncAll))
    }

    fn check_email_free(&self, email: &str) -> Result<(), StoreError> {
        if self.emails.contains_key(email_key(email))? { Err(StoreError::EmailTaken) } else { Ok(()) }
    }
}

/// Addresses that differ only in case count as one: no mail provider in use distinguishes them.
fn email_key(email: &str) -> String {
    email.to_lowercase()
}

#[cfg(test)]
mod tests {
    use weft_kit::ids;

    use super::*;

    fn user(email: &str) -> User {
        User { id: ids::new_id(), name: "Ada".to_owned(), email: email.to_owned(), created_at: None }
    }

    #[tokio::test]
    async fn an_address_is_used_once_and_is_free_again_after_a_delete() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ada = store.create(user("Ada@example.com")).await.unwrap();
        assert!(matches!(store.create(user("ada@example.com")).await, Err(StoreError::EmailTaken)));

        let to = |email: &str| Changes { email: Some(email.to_owned()), name: None };
        let bob = store.create(user("bob@example.com")).await.unwrap();
        assert!(matches!(store.update(bob.id.clone(), to("ADA@example.com")).await, Err(StoreError::EmailTaken)));
        store.update(ada.id.clone(), to("ada@example.org")).await.unwrap();
        store.update(bob.id.clone(), to("ada@example.com")).await.unwrap();
        store.delete(bob.id.clone()).await.unwrap();
        assert!(matches!(store.get(bob.id).await, Err(StoreError::NotFound)));
        store.create(user("ada@example.com")).await.unwrap();
    }

    #[tokio::test]
    async fn users_survive_a_restart_and_are_listed_in_pages() {
        let dir = tempfile::tempdir().unwrap();
        let mut ids = Vec::new();
        {
            let store = Store::open(dir.path()).unwrap();
            for n in 0..5 {
                ids.push(store.create(user(&format!("u{n}@example.com"))).await.unwrap().id);
            }
        }
        let store = Store::open(dir.path()).unwrap();
        let of = |users: Vec<User>| users.into_iter().map(|u| u.id).collect::<Vec<_>>();
        let (first, more) = store.list(String::new(), 3).await.unwrap();
        assert_eq!((of(first).as_slice(), more), (&ids[..3], true));
        let (rest, more) = store.list(ids[2].clone(), 2).await.unwrap();
        assert_eq!((of(rest).as_slice(), more), (&ids[3..], false));
    }
}
