"""Bank accounts as a dict from owner to balance in cents."""


def deposit(accounts: dict[str, int], owner: str, cents: int) -> dict[str, int]:
    """Return the accounts after paying cents in; an unknown owner gets a new account.

    Raises ValueError unless cents is positive. The argument is not changed.
    """
    if cents <= 0:
        raise ValueError("the amount must be positive")
    return {**accounts, owner: accounts.get(owner, 0) + cents}


def withdraw(accounts: dict[str, int], owner: str, cents: int) -> dict[str, int]:
    """Return the accounts after taking cents out; the argument is not changed.

    Raises KeyError for an unknown owner, ValueError unless cents is positive and covered by the balance.
    """
    if owner not in accounts:
        raise KeyError(owner)
    if cents <= 0 or cents > accounts[owner]:
        raise ValueError("the amount is not available")
    return {**accounts, owner: accounts[owner] - cents}


def transfer(accounts: dict[str, int], source: str, target: str, cents: int) -> dict[str, int]:
    """Return the accounts after moving cents from source to target; both must exist, else KeyError.

    Raises ValueError as withdraw does.
    """
    if target not in accounts:
        raise KeyError(target)
    return deposit(withdraw(accounts, source, cents), target, cents)


def overdrawn(changes: list[tuple[str, int]]) -> list[str]:
    """Return, sorted, the owners whose balance was ever below zero when the changes are applied in order from 0."""
    balances: dict[str, int] = {}
    names: list[str] = []
    for owner, cents in changes:
        balances[owner] = balances.get(owner, 0) + cents
        if balances[owner] < 0 and owner not in names:
            names.append(owner)
    return sorted(names)


def transfer_all(
    accounts: dict[str, int], orders: list[tuple[str, str, int]]
) -> tuple[dict[str, int], list[tuple[str, str, int]]]:
    """Return (the accounts after all (source, target, cents) orders that succeed, the orders that fail), in order."""
    failed = []
    for source, target, cents in orders:
        try:
            accounts = transfer(accounts, source, target, cents)
        except (KeyError, ValueError):
            failed.append((source, target, cents))
    return (accounts, failed)
