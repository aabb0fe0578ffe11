"""Classic ciphers on the letters A-Z and a-z; other characters stay as they are."""


def shift_letter(letter: str, shift: int) -> str:
    """Return the letter shift places later in the alphabet, cyclic and of the same case; others unchanged."""
    if "a" <= letter <= "z":
        base = ord("a")
    elif "A" <= letter <= "Z":
        base = ord("A")
    else:
        return letter
    return chr((ord(letter) - base + shift) % 26 + base)


def caesar(text: str, shift: int) -> str:
    """Return text with every letter moved shift places on; a negative shift moves back."""
    return "".join(shift_letter(char, shift) for char in text)


def vigenere(text: str, key: str, decrypt: bool = False) -> str:
    """Return text with its n-th letter moved on by the n-th letter of the repeated key (a = 0), back if decrypt.

    Characters that are not letters use up no letter of the key. Raises ValueError unless key is all lowercase a-z.
    """
    if not key or not all("a" <= char <= "z" for char in key):
        raise ValueError("the key must be lowercase letters")
    result = []
    used = 0
    for char in text:
        if not char.isalpha():
            result.append(char)
            continue
        shift = ord(key[used % len(key)]) - ord("a")
        result.append(shift_letter(char, -shift if decrypt else shift))
        used += 1
    return "".join(result)


def atbash(text: str) -> str:
    """Return text with a exchanged for z, b for y and so on, in either case."""
    swapped = []
    for char in text:
        if "a" <= char.lower() <= "z":
            mirrored = chr(ord("a") + ord("z") - ord(char.lower()))
            swapped.append(mirrored.upper() if char.isupper() else mirrored)
        else:
            swapped.append(char)
    return "".join(swapped)
