"""Addresses like '192.168.0.1' and networks like '10.0.0.0/8'."""


def to_number(address: str) -> int:
    """Return the 32-bit number of an address; raise ValueError unless it has four parts from 0 to 255."""
    parts = address.split(".")
    if len(parts) != 4:
        raise ValueError("four parts are needed")
    number = 0
    for part in parts:
        if not part.isdigit() or int(part) > 255:
            raise ValueError("bad part")
        number = number * 256 + int(part)
    return number


def to_address(number: int) -> str:
    """Return the address of a 32-bit number."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def bounds(network: str) -> tuple[str, str]:
    """Return the first and the last address of a network; raise ValueError unless its size is within 0..32."""
    address, _, size = network.partition("/")
    if not size.isdigit() or int(size) > 32:
        raise ValueError("bad network size")
    free = 32 - int(size)
    first = to_number(address) >> free << free
    return (to_address(first), to_address(first + 2**free - 1))


def is_inside(address: str, network: str) -> bool:
    """Return whether the address belongs to the network."""
    first, last = bounds(network)
    return to_number(first) <= to_number(address) <= to_number(last)


def best_route(address: str, routes: list[tuple[str, str]]) -> str | None:
    """Return the target of the (network, target) route of the smallest network holding the address, or None.

    Of equally small ones the first is taken.
    """
    best_size = -1
    best_target = None
    for network, target in routes:
        size = int(network.split("/")[1])
        if is_inside(address, network) and size > best_size:
            best_size, best_target = size, target
    return best_target


def valid_addresses(texts: list[str]) -> list[str]:
    """Return the texts that are addresses, by rising number."""
    numbers = []
    for text in texts:
        try:
            numbers.append(to_number(text))
        except ValueError:
            continue
    return [to_address(number) for number in sorted(numbers)]
