"""Shipping prices in cents."""

ZONE_PRICES = {"home": 390, "near": 890, "far": 1590}


def billable_grams(grams: int, length: int, width: int, height: int) -> int:
    """Return the greater of the weight and the volume weight, which is 1 gram per 5 whole cubic centimetres.

    Raises ValueError unless weight and all sides (in centimetres) are positive.
    """
    if min(grams, length, width, height) <= 0:
        raise ValueError("sizes must be positive")
    return max(grams, length * width * height // 5)


def base_price(grams: int, zone: str) -> int:
    """Return the zone's price for up to 1000 grams plus 150 for each further 500 grams begun.

    Raises KeyError for an unknown zone.
    """
    price = ZONE_PRICES[zone]
    if grams > 1000:
        steps = (grams - 1000 + 499) // 500
        price += 150 * steps
    return price


def total_price(parcels: list[int], zone: str, insured: bool = False) -> int:
    """Return the price of parcels given by their grams; from three parcels on, 10 percent less, rounded down.

    Insurance adds 200 per parcel after the discount.
    """
    total = sum(base_price(grams, zone) for grams in parcels)
    if len(parcels) >= 3:
        total = total * 90 // 100
    if insured:
        total += 200 * len(parcels)
    return total


def split_load(grams: int, limit: int) -> list[int]:
    """Return the grams of the fewest parcels of at most limit, full ones first; ValueError if limit is below 1."""
    if limit < 1:
        raise ValueError("limit must be positive")
    full, rest = divmod(grams, limit)
    return [limit] * full + ([rest] if rest else [])
