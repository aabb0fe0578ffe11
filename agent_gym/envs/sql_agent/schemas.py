"""Hand-written schemas of SQL-v0: what tables there are, and the words that may name them and their columns.

A schema is a text. A line that starts at the margin is a table: the words for it, of which each seed takes one, and
after ``>`` the tables that it refers to, by their first words. An indented line is a column: its words, then what
stands in it (``name``: almost unique, ``place`` and ``kind``: some words that repeat, ``int``, ``money`` and ``date``
with their bounds), then ``?`` where a value may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_gym.text import split_lines

__all__ = ["SCHEMAS", "Column", "Schema", "Table", "singular"]


@dataclass(frozen=True)
class Column:
    """Words for a column and what stands in it."""

    words: tuple[str, ...]
    kind: str
    low: int = 0
    high: int = 0
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """Words for a table, its columns, and the numbers of the tables it refers to."""

    words: tuple[str, ...]
    columns: tuple[Column, ...]
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schema:
    """Tables; each comes after those it refers to."""

    name: str
    tables: tuple[Table, ...]


def singular(word: str) -> str:
    """One of several: ``cities`` to ``city``."""
    return word[:-3] + "y" if word.endswith("ies") else word.removesuffix("s")


def _read(name: str, text: str) -> Schema:
    tables: list[Table] = []
    first: dict[str, int] = {}
    for line in split_lines(text.strip()):
        head, *rest = line.split()
        words = tuple(head.split("|"))
        if not line.startswith(" "):
            first[words[0]] = len(tables)
            tables.append(Table(words, (), tuple(first[parent] for parent in rest[1:])))
            continue
        kind, *bounds = [part for part in rest if part != "?"]
        low, high = map(int, bounds) if bounds else (0, 0)
        last = tables[-1]
        tables[-1] = Table(last.words, (*last.columns, Column(words, kind, low, high, "?" in rest)), last.parents)
    return Schema(name, tuple(tables))


_TRAIN = {
    "shop": """
customers|clients|buyers
  name|full_name|label name
  city|town|place place
  age|years int 18 80
  tier|level|status kind
products|items|articles
  title|caption|product_name name
  category|class|sort kind
  price|cost|charge money 5 90
  stock|quantity|supply int 0 500
orders|purchases|sales > customers products
  state|phase|stage kind
  amount|total|sum_paid money 10 400
  day|date|placed_on date
  discount|rebate int 1 30 ?
""",
    "school": """
teachers|instructors|tutors
  name|full_name|label name
  subject|field|area kind
  salary|wage|pay money 1500 5000
courses|lessons|lectures > teachers
  title|caption|course_name name
  hours|length|duration int 10 120
  room|hall|place kind
pupils|students|learners
  name|full_name|label name
  town|city|home place
  age|years int 6 19
enrolments|admissions|entries > pupils courses
  score|points|mark int 1 100
  term|season|period kind
  fee|charge|cost money 20 300 ?
""",
    "clinic": """
doctors|physicians|medics
  name|full_name|label name
  field|area|branch kind
  fee|charge|price money 20 200
patients|sufferers|cases
  name|full_name|label name
  city|town|home place
  age|years int 1 95
  weight|mass int 12 120 ?
visits|appointments|meetings > doctors patients
  day|date|held_on date
  cost|bill|amount money 15 350
  reason|cause|motive kind
""",
    "library": """
writers|authors|novelists
  name|full_name|label name
  country|land|nation place
  born|birth_year int 1850 1995
books|volumes|titles > writers
  caption|heading|book_name name
  genre|sort|style kind
  pages|length|sheets int 60 900
  price|cost|value money 4 60
readers|members|users
  name|full_name|label name
  city|town|home place
  joined|since|entry_date date
loans|lendings|borrowings > books readers
  day|date|lent_on date
  days|duration|period int 1 90
  fine|penalty|fee money 1 25 ?
""",
    "airline": """
airports|airfields|terminals
  name|full_name|label name
  country|land|nation place
  gates|docks int 2 90
planes|airplanes|jets
  model|type|make name
  seats|capacity|places int 40 420
  maker|builder|producer kind
flights|trips|routes > planes airports
  day|date|departs_on date
  price|fare|cost money 40 900
  state|status|phase kind
bookings|tickets|reservations > flights
  passenger|traveller|flyer name
  cabin|class|section kind
  paid|amount|total money 40 1200
""",
    "farm": """
farms|estates|holdings
  name|full_name|label name
  region|area|district place
  size|surface|extent int 5 900
fields|plots|parcels > farms
  crop|plant|culture kind
  soil|ground|earth kind
  width|breadth|span int 10 400
harvests|yields|gatherings > fields
  day|date|brought_in date
  tons|weight|load int 1 300
  worth|value|price money 50 4000
  helpers|workers|hands int 1 40 ?
""",
}

# Their words are those of train, in other tables: what a word may be called otherwise is learnt, a database is not.
_VALIDATION = {
    "market": """
farms|estates|holdings
  name|full_name|label name
  country|land|nation place
  joined|since|entry_date date
products|items|articles > farms
  title|caption|product_name name
  crop|plant|culture kind
  tons|weight|load int 1 300
customers|clients|buyers
  name|full_name|label name
  city|town|place place
bookings|tickets|reservations > products customers
  day|date|placed_on date
  amount|total|sum_paid money 10 400
  state|phase|stage kind
  days|duration|period int 1 90
  fine|penalty|fee money 1 25 ?
""",
    "college": """
teachers|instructors|tutors
  name|full_name|label name
  subject|field|area kind
  age|years int 18 80
  joined|since|entry_date date
books|volumes|titles > teachers
  caption|heading|book_name name
  price|cost|value money 4 60
pupils|students|learners > teachers
  name|full_name|label name
  town|city|home place
loans|lendings|borrowings > books pupils
  day|date|lent_on date
  score|points|mark int 1 100
  discount|rebate int 1 30 ?
""",
    "rescue": """
airports|airfields|terminals
  name|full_name|label name
  region|area|district place
doctors|physicians|medics > airports
  name|full_name|label name
  field|area|branch kind
  salary|wage|pay money 1500 5000
visits|appointments|meetings > doctors
  reason|cause|motive kind
  day|date|held_on date
  hours|length|duration int 10 120
  fee|charge|cost money 20 300 ?
""",
}

_TEST = {
    "music": """
artists|singers|musicians
  name|full_name|label name
  country|land|home place
  age|years int 16 80
albums|records|discs > artists
  title|caption|heading name
  style|genre|sort kind
  price|cost|value money 4 60
tracks|songs|pieces > albums
  label|name|song_name name
  seconds|length|duration int 60 600
  plays|streams|hits int 10 9000
concerts|shows|gigs > artists
  city|town|place place
  day|date|held_on date
  visitors|crowd|guests int 50 9000 ?
""",
    "garage": """
owners|holders|keepers
  name|full_name|label name
  town|city|home place
  age|years int 18 90
cars|vehicles|autos > owners
  model|type|make name
  colour|paint|shade kind
  mileage|distance|range int 100 9000
  value|worth|price money 500 9000
repairs|mendings|services > cars
  part|piece|component kind
  cost|bill|charge money 20 900
  day|date|done_on date
  hours|duration|effort int 1 40 ?
""",
    "hotel": """
hotels|inns|lodges
  name|full_name|label name
  city|town|place place
  stars|rating|rank int 1 40
rooms|chambers|suites > hotels
  kind|type|sort kind
  floor|storey|level int 1 60
  rate|price|fare money 30 600
guests|visitors|travellers
  name|full_name|label name
  country|land|nation place
  age|years int 18 90
stays|visits|bookings > rooms guests
  nights|days|duration int 1 60
  paid|amount|total money 40 4000
  arrived|start|entry_date date
  tip|bonus|extra money 1 50 ?
""",
    "league": """
clubs|teams|sides
  name|full_name|label name
  city|town|home place
  budget|funds|money int 100 9000
players|athletes|strikers > clubs
  name|full_name|label name
  role|position|duty kind
  age|years int 16 42
  wage|salary|pay money 100 4000
games|contests|fixtures > clubs
  day|date|played_on date
  crowd|visitors|audience int 50 9000
  goals|points|score int 0 90 ?
""",
}

SCHEMAS = {
    split: tuple(_read(name, text) for name, text in texts.items())
    for split, texts in (("train", _TRAIN), ("validation", _VALIDATION), ("test", _TEST))
}
"""By split."""
