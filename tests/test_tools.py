import json
import warnings
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from agent_gym import Call, Tool, ToolError, tool


class Address(BaseModel):
    street: str
    number: int = 1


def book(
    guest: str,
    nights: Annotated[int, Field(ge=1, le=30)],
    room: Literal["single", "double"] = "single",
    extras: list[str] | None = None,
    note: Optional[str] = None,  # noqa: UP045  (the old spelling must work too)
    address: Address | None = None,
    price: float = 1.0,
) -> None:
    """Book a room
    in the hotel.

    More words that the model need not see.

    Args:
        guest: Who comes.
        nights (int): How long,
            in nights.
        room: Kind of room.

    Returns:
        guest: not a parameter
    """


BOOK = Tool(book)


def schema(made):
    return json.loads(made.schema_json)["function"]


def test_schema_from_types():
    found = schema(BOOK)
    assert found["name"] == "book"
    assert found["description"] == "Book a room in the hotel."
    parameters = found["parameters"]
    assert parameters["required"] == list(parameters["properties"])
    assert parameters["additionalProperties"] is False
    fields = parameters["properties"]
    assert list(fields) == ["guest", "nights", "room", "extras", "note", "address", "price"]
    assert fields["guest"] == {"type": "string", "description": "Who comes."}
    nights = {"type": "integer", "minimum": 1, "maximum": 30, "description": "How long, in nights."}
    assert fields["nights"] == nights
    assert fields["room"]["enum"] == ["single", "double", None]
    assert fields["room"]["description"] == 'Kind of room; null means "single".'
    assert {"type": "array", "items": {"type": "string"}} in fields["extras"]["anyOf"]
    assert {"type": "null"} in fields["note"]["anyOf"]
    assert fields["price"]["type"] == ["number", "null"]
    address = parameters["$defs"]["Address"]
    assert address["properties"]["number"]["type"] == "integer"
    assert (address["required"], address["additionalProperties"]) == (["street", "number"], False)


def test_null_stands_for_the_default():
    given = {"guest": "Ana", "nights": 3, "room": None, "price": None, "note": None}
    assert BOOK.validate(given) == BOOK.validate({"guest": "Ana", "nights": 3})
    with pytest.raises(ToolError, match="nights"):
        BOOK.validate({"guest": "Ana", "nights": None})


def test_text_arguments_are_read_as_the_parameters_want_them():
    raw = {"guest": "42", "nights": "3", "extras": '["sea"]', "note": "true", "price": "1.5", "unknown": "7"}
    call = BOOK.typed(Call("book", dict.fromkeys(raw, 0), raw=raw))
    assert call.arguments == {
        "guest": "42", "nights": 3, "extras": ["sea"], "note": "true", "price": 1.5, "unknown": 0,
    }  # fmt: skip
    assert BOOK.typed(Call("book", {"nights": 0}, raw={"nights": "three"})).arguments == {"nights": 0}


def test_validate_fills_defaults_and_converts():
    got = BOOK.validate({"guest": "Ana", "nights": "3", "address": {"street": "Elm"}, "price": 2})
    assert got == {
        "guest": "Ana",
        "nights": 3,
        "room": "single",
        "extras": None,
        "note": None,
        "address": Address(street="Elm"),
        "price": 2.0,
    }
    assert type(got["price"]) is float


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"nights": 1}, "guest"),
        ({"guest": 5, "nights": 1}, "guest"),
        ({"guest": "A", "nights": 31}, "nights"),
        ({"guest": "A", "nights": 2.5}, "nights"),
        ({"guest": "A", "nights": 1, "room": "suite"}, "room"),
        ({"guest": "A", "nights": 1, "extras": ["x", 5]}, "extras.1"),
        ({"guest": "A", "nights": 1, "address": {"number": 2}}, "address.street"),
        ({"guest": "A", "nights": 1, "pets": 2}, "pets"),
        ({"guest": "A", "nights": 1, "price": 10**400}, "price"),
        ({"guest": "A", "nights": 1, "argument_0": "B"}, "argument_0"),
    ],
)
def test_error_is_one_sentence_about_one_argument(arguments, where):
    with pytest.raises(ToolError) as caught:
        BOOK.validate(arguments)
    assert caught.value.kind == "invalid"
    message = str(caught.value)
    assert message.startswith(f"book: argument {where!r}")
    assert "\n" not in message
    assert "pydantic" not in message


def test_context_is_hidden_from_the_model():
    def read(db, key: str) -> str:
        """Read."""
        return db[key]

    made = Tool(read, context=True)
    assert list(schema(made)["parameters"]["properties"]) == ["key"]
    assert made.validate({"key": "a"}) == {"key": "a"}


def test_parameters_must_be_typed_and_named():
    def bare(x):
        """Untyped."""

    def many(*things: int):
        """Any number."""

    with pytest.raises(TypeError, match="'bare': parameter 'x' needs a type annotation"):
        Tool(bare)
    with pytest.raises(TypeError, match="'many': name every parameter"):
        Tool(many)


def test_any_parameter_name_works():
    def odd(json: str, schema: int, model_config: str, copy: bool, _private: int = 3) -> None:
        """Names that a pydantic model has for itself."""

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Tool(odd)
        got = made.validate({"json": "a", "schema": 1, "model_config": "b", "copy": True})
    assert got == {"json": "a", "schema": 1, "model_config": "b", "copy": True, "_private": 3}
    assert list(schema(made)["parameters"]["properties"]) == ["json", "schema", "model_config", "copy", "_private"]


def test_decorator_and_no_docstring():
    @tool(reads_only=True, name="peek")
    def look(x: Any = None):
        return x

    assert isinstance(look, Tool)
    assert (look.name, look.reads_only, look.cacheable) == ("peek", True, True)
    assert schema(look)["description"] == "peek"
    assert look.validate({"x": [1]}) == {"x": [1]}
