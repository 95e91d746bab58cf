//! The commands on the state folder of a control plane, which may run meanwhile.

use weft_mesh::{limits, names::ServiceName, tls};

use crate::{
    ReleaseArgs, StateArgs, TokenArgs,
    authority::{ca::Ca, join_token},
    claims::{Contest, Saved, is_address, store::Store},
};

/// Makes a join token.
///
/// # Errors
/// There is no CA in the folder, or it belongs to another trust domain.
pub fn token(args: &TokenArgs) -> anyhow::Result<String> {
    tls::install_crypto_provider();
    let id = args.spiffe_id()?;
    // A token of a new CA would be useless, and making one would hide a misspelt folder.
    anyhow::ensure!(
        Ca::is_in(&args.state_dir),
        "no CA in {}: start the control plane there first, or name its folder with --state-dir",
        args.state_dir.display()
    );
    anyhow::ensure!(
        args.address.len() <= limits::HOSTS_PER_TOKEN,
        "--address: found {} addresses; allowed: up to {}",
        args.address.len(),
        limits::HOSTS_PER_TOKEN
    );
    let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
    Ok(join_token::issue_for(&ca, &id, &args.address, args.ttl)?)
}

/// Releases a pinned claim. Returns a message for people.
///
/// # Errors
/// There is no CA in the folder, or the claim is not pinned.
pub fn release(args: &ReleaseArgs) -> anyhow::Result<String> {
    let owner = store(&args.of)?.release(&args.claim)?;
    Ok(format!(
        "{} is released; it was pinned to {owner}. The control plane sees this within seconds, or when it starts.",
        args.claim
    ))
}

/// Grants contracts to a service: the running control plane pins them to its identity, unless another has them. Then
/// [`are_pinned_to`] says so. Blocks while another process holds the lock of the state folder.
///
/// # Errors
/// A name is not that of a contract, there is no CA in the folder, or it cannot be written.
pub fn grant_contracts(args: &StateArgs, service: &ServiceName, contracts: &[String]) -> anyhow::Result<()> {
    Ok(store(args)?.grant(service, contracts)?)
}

/// Whether all these contracts are pinned to a service.
///
/// # Errors
/// There is no CA in the folder, or its claims can't be read.
pub fn are_pinned_to(args: &StateArgs, service: &ServiceName, contracts: &[String]) -> anyhow::Result<bool> {
    let (saved, _) = store(args)?.load()?;
    Ok(contracts.iter().all(|contract| saved.pinned.get(contract) == Some(service)))
}

/// Forgets which contracts are pinned, and which were granted but not pinned yet, so that the next control plane pins
/// them anew. Does nothing to addresses, or if no control plane has run. Only for while none runs: a running one would
/// pin them again.
///
/// # Errors
/// Its claims can't be read or written.
pub fn forget_contracts(args: &StateArgs) -> anyhow::Result<()> {
    let store = store(args)?;
    let (mut saved, hosts) = store.load()?;
    saved.pinned.retain(|claim, _| is_address(claim));
    store.forget_grants()?;
    Ok(store.save(&saved, &hosts)?)
}

/// The claims that are pinned and those that are contested, one line each.
///
/// # Errors
/// There is no CA in the folder, or its claims can't be read.
pub fn claims_kept(args: &StateArgs) -> anyhow::Result<String> {
    let store = store(args)?;
    let (saved, _) = store.load()?;
    let pinned = saved.pinned.iter().map(|(claim, owner)| format!("{claim} is pinned to {}", store.id(owner)));
    let lines = pinned.chain(contested(&store, &saved));
    Ok(lines.map(|line| line + "\n").collect())
}

/// The claims that were refused by the control plane of a folder, one line each: by the running one or else the last
/// one. Empty if none has run.
///
/// # Errors
/// Its claims can't be read.
pub fn contests_kept(args: &StateArgs) -> anyhow::Result<Vec<String>> {
    if !Ca::is_in(&args.state_dir) {
        return Ok(Vec::new());
    }
    let store = store(args)?;
    let (saved, _) = store.load()?;
    Ok(contested(&store, &saved).collect())
}

fn contested(store: &Store, saved: &Saved) -> impl Iterator<Item = String> {
    saved.contests.iter().map(|Contest { claim, owner, claimant }| {
        format!("{claim} is contested: it belongs to {}, and was refused to {}", store.id(owner), store.id(claimant))
    })
}

fn store(args: &StateArgs) -> anyhow::Result<Store> {
    anyhow::ensure!(
        Ca::is_in(&args.state_dir),
        "no control plane keeps its state in {}: name its folder with --state-dir",
        args.state_dir.display()
    );
    Ok(Store::open(&args.state_dir, &args.trust_domain)?)
}
