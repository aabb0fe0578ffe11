"""Prime numbers and factors."""


def primes_up_to(limit: int) -> list[int]:
    """Return all primes up to and including limit, by the sieve of Eratosthenes."""
    is_prime = [True] * (limit + 1)
    primes = []
    for number in range(2, limit + 1):
        if not is_prime[number]:
            continue
        primes.append(number)
        for multiple in range(number * number, limit + 1, number):
            is_prime[multiple] = False
    return primes


def factorize(number: int) -> list[tuple[int, int]]:
    """Return the prime factors as (prime, exponent) pairs in rising order, [] for 1.

    Raises ValueError if number is below 1.
    """
    if number < 1:
        raise ValueError("number must be positive")
    factors = []
    divisor = 2
    while divisor * divisor <= number:
        exponent = 0
        while number % divisor == 0:
            number //= divisor
            exponent += 1
        if exponent:
            factors.append((divisor, exponent))
        divisor += 1
    if number > 1:
        factors.append((number, 1))
    return factors


def divisor_count(number: int) -> int:
    """Return how many positive divisors number has; raise ValueError if number is below 1."""
    count = 1
    for _, exponent in factorize(number):
        count *= exponent + 1
    return count


def greatest_common_divisor(first: int, second: int) -> int:
    """Return the greatest common divisor, never negative; that of 0 and 0 is 0."""
    while second:
        first, second = second, first % second
    return abs(first)
