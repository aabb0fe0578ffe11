"""A library: one table, three tools, two goals. Importing this file registers the domain."""

from agent_gym.envs.api_agent import Domain, Draft, Latency, Record, ToolError, Transaction, register_domain


class Book(Record):  # the first field is the key
    id: str
    title: str
    lent: bool = False


library = Domain("library", books=Book)


@library.tool(reads_only=True, latency=Latency(base_ms=300.0, per_unit_ms=30.0), group="reads")
def list_books(db: Transaction) -> list[Book]:
    """List every book. Slow; find_book is the quick way."""
    return db.scan(Book, "books")


@library.tool(reads_only=True, latency=Latency(base_ms=40.0), group="reads")
def find_book(db: Transaction, title: str) -> list[Book]:
    """Find books by their exact title."""
    return db.find(Book, "books", title=title)


@library.tool(latency=Latency(base_ms=80.0))
def lend_book(db: Transaction, book_id: str) -> Book:
    """Lend a book that is in."""
    book = db.get(Book, "books", book_id)
    if book.lent:
        raise ToolError("conflict", f"book {book_id} is lent already")
    return db.update("books", book, lent=True)


@library.background  # one more book, so that a scan is longer
def shelf(g: Draft) -> Book:
    return g.new("books", Book(id=g.id("B"), title=g.word()))


@library.goal(id=1, title=2)  # each way of naming the book, and the calls it then takes
def lend(g: Draft, by: str) -> None:
    book, other = shelf(g), shelf(g)
    g.say(f"Lend the book {g.refer(by, getattr(book, by))}.")
    if by == "title":
        g.call("find_book", title=book.title)
    g.call("lend_book", book_id=book.id)
    g.trap("lend_book", book_id=other.id)  # tempting and wrong: doing it too must not pass


@library.goal(title=1)
def tell(g: Draft, by: str) -> None:
    book = shelf(g)
    g.say(f"Tell the id of the book {g.refer(by, book.title)}.")
    g.call("find_book", title=book.title)
    g.expect("id", book.id)


register_domain(library)
