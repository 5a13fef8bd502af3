"""Compiles the SQL condition of a request, `where`, into an Arrow expression over columns of crops and wells.

The condition is parsed, checked node by node against a list of allowed nodes, and rebuilt. No text of a caller reaches
a database: functions, subqueries, casts and files are not in the list.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from cytolake.serving.problems import ServingError

MAX_WHERE_LENGTH = 4_000
"""Characters. Limits the parser's work; a longer list of values belongs in a curation."""
MAX_WHERE_DEPTH = 40
"""Nested parentheses and operators; the compiler recurses once for each."""

MAX_NUMBER = 2.0**53
"""Whole numbers beyond it are not exact as floats."""

COMPARISONS: Mapping[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}

PARTS: Mapping[type[exp.Expression], frozenset[str]] = {
    exp.In: frozenset({"this", "expressions"}),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.Like: frozenset({"this", "expression", "negate"}),
    exp.ILike: frozenset({"this", "expression", "negate"}),
}
"""Allowed parts of a node, where they are not `this` and `expression`. A node with another part is refused: a new
version of the parser may put a word such as NOT into one."""

ALLOWED = "comparisons, AND, OR, NOT, IN (...), BETWEEN, LIKE, ILIKE, IS NULL"


def compile_where(where: str, schema: pa.Schema) -> Any:
    """Parse a SQL condition into an Arrow compute expression.

    Args:
        where: Such as `gene = 'TP53' AND dose > 1 AND plate NOT IN ('P1', 'P2')`. SQL's three-valued logic: a
            comparison with a null is neither true nor false, and only rows for which the whole is true pass.
        schema: Columns that the condition may name; text, numbers and booleans can be compared.

    Returns:
        `pyarrow.compute.Expression` for `Table.filter`.

    Raises:
        ServingError: 422, with the column or construct that is not allowed.
    """
    if len(where) > MAX_WHERE_LENGTH:
        raise _refuse(f"{len(where):,} characters, at most {MAX_WHERE_LENGTH:,} are allowed")
    try:
        tree = sqlglot.parse_one(where, into=exp.Condition, dialect="duckdb")
    except sqlglot.errors.SqlglotError as error:
        raise _refuse(f"{str(error).splitlines()[0][:200]}") from error
    except RecursionError as error:
        raise _refuse("nested too deeply") from error
    return _expression(tree, schema, 0)


def _expression(node: Any, schema: pa.Schema, depth: int) -> Any:
    """An expression that is true, false or null for each row."""
    if depth > MAX_WHERE_DEPTH:
        raise _refuse(f"nested more than {MAX_WHERE_DEPTH} deep")
    parts = {name for name, part in node.args.items() if part}
    if parts - PARTS.get(type(node), frozenset({"this", "expression"})) and not isinstance(node, exp.Column):
        raise _refuse(f"{node.sql('duckdb')[:80]} is not allowed; allowed are {ALLOWED}")
    deeper = depth + 1
    match node:
        case exp.Paren():
            return _expression(node.this, schema, deeper)
        case exp.And() | exp.Or():
            # The tree of a long chain of AND is deep; flattened, it has the depth of one operator.
            terms = [_expression(term, schema, deeper) for term in node.flatten()]
            joined = terms[0]
            for term in terms[1:]:
                joined = joined & term if isinstance(node, exp.And) else joined | term
            return joined
        case exp.Not():
            return ~_expression(node.this, schema, deeper)
        case exp.Boolean():
            return pc.scalar(bool(node.this))
        case exp.Column():
            name = _column(node, schema)
            if _family(schema.field(name).type) != "boolean":
                raise _refuse(f"column {name} is not true or false; compare it with something")
            return pc.field(name)
        case exp.Is():
            return _is(node, schema)
        case exp.In():
            return _in(node, schema)
        case exp.Between():
            name = _column(node.this, schema)
            low, high = (_value(node.args[end], name, schema) for end in ("low", "high"))
            return (pc.field(name) >= low) & (pc.field(name) <= high)
        case exp.Like() | exp.ILike():
            return _like(node, schema)
    for kind, compare in COMPARISONS.items():
        if type(node) is kind:
            return _comparison(node, compare, schema)
    raise _refuse(f"{type(node).__name__} is not allowed; allowed are {ALLOWED}")


def _comparison(node: Any, compare: Callable[[Any, Any], Any], schema: pa.Schema) -> Any:
    left, right = node.this, node.expression
    if isinstance(left, exp.Column) and isinstance(right, exp.Column):
        names = _column(left, schema), _column(right, schema)
        families = [_family(schema.field(name).type) for name in names]
        if families[0] != families[1]:
            raise _refuse(f"column {names[0]} holds {families[0]}, column {names[1]} {families[1]}")
        return compare(pc.field(names[0]), pc.field(names[1]))
    if isinstance(left, exp.Column):
        name = _column(left, schema)
        return compare(pc.field(name), _value(right, name, schema))
    if isinstance(right, exp.Column):
        name = _column(right, schema)
        return compare(pc.scalar(_value(left, name, schema)), pc.field(name))
    raise _refuse("a comparison names no column")


def _is(node: Any, schema: pa.Schema) -> Any:
    name = _column(node.this, schema)
    if isinstance(node.expression, exp.Null):
        return pc.field(name).is_null()
    if isinstance(node.expression, exp.Boolean) and _family(schema.field(name).type) == "boolean":
        # The result of IS is never null: a null is neither true nor false.
        return pc.coalesce(pc.field(name) == bool(node.expression.this), pc.scalar(False))
    raise _refuse(f"column {name}: IS takes NULL, or TRUE and FALSE for a boolean column")


def _in(node: Any, schema: pa.Schema) -> Any:
    name = _column(node.this, schema)
    if not node.expressions:
        raise _refuse(f"column {name}: IN takes a list of values, such as IN ('a', 'b')")
    values = [_value(value, name, schema) for value in node.expressions]
    field = pc.field(name)
    is_in = field.isin(pa.array(values, type=schema.field(name).type if _is_text(values) else None))
    # In SQL null IN (...) is null, so NOT IN leaves nulls out; in Arrow it is false.
    return pc.if_else(field.is_valid(), is_in, pa.scalar(None, pa.bool_()))


def _like(node: Any, schema: pa.Schema) -> Any:
    name = _column(node.this, schema)
    if _family(schema.field(name).type) != "text":
        raise _refuse(f"column {name} holds {_family(schema.field(name).type)}; LIKE takes text")
    pattern = _value(node.expression, name, schema)
    if "\\" in pattern:
        raise _refuse("a backslash in a LIKE pattern has no fixed meaning in SQL; leave it out")
    is_like = pc.match_like(pc.field(name), pattern, ignore_case=isinstance(node, exp.ILike))
    return ~is_like if node.args.get("negate") else is_like


def _column(node: Any, schema: pa.Schema) -> str:
    if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier):
        raise _refuse(f"{type(node).__name__} where a column's name is expected")
    if {part for part, value in node.args.items() if value} != {"this"}:
        raise _refuse(f"write column {node.name} without the table in front")
    name = next((known for known in schema.names if known.lower() == node.name.lower()), None)
    if name is None:
        hint = " (text stands in single quotes)" if node.this.quoted else ""
        raise _refuse(f"there is no column {node.name!r}{hint}. Columns are {', '.join(schema.names)}")
    if _family(schema.field(name).type) == "other":
        raise _refuse(f"column {name} holds {schema.field(name).type}, which cannot be compared")
    return str(name)


def _value(node: Any, column: str, schema: pa.Schema) -> Any:
    """The literal that a column is compared with; its type must be the column's."""
    family = _family(schema.field(column).type)
    sign = 1
    if isinstance(node, exp.Neg):
        node, sign = node.this, -1
    if isinstance(node, exp.Null):
        raise _refuse(f"column {column}: nothing equals NULL; write {column} IS NULL")
    if isinstance(node, exp.Boolean) and family == "boolean" and sign == 1:
        return bool(node.this)
    if isinstance(node, exp.Literal):
        if node.is_string and family == "text" and sign == 1:
            return str(node.this)
        if not node.is_string and family == "number":
            number = float(node.this)
            if not abs(number) < MAX_NUMBER:
                raise _refuse(f"column {column}: the number {str(node.this)[:40]} is out of range")
            return sign * (int(node.this) if str(node.this).isdecimal() else number)
        raise _refuse(f"column {column} holds {family}, found {'text' if node.is_string else 'a number'} {node.this!r}")
    raise _refuse(f"column {column} holds {family}; compare it with a plain value, found {type(node).__name__}")


def _family(kind: Any) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "other"


def _is_text(values: list[Any]) -> bool:
    return isinstance(values[0], str)


def _refuse(reason: str) -> ServingError:
    return ServingError(status=422, detail=f"where: {reason}.")
