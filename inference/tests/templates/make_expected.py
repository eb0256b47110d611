"""Renders the templates beside this file as `transformers` does and writes expected.json.

Run once, with (PyPI): python3 3.11.7, jinja2 3.1.6

    python3 make_expected.py            # the templates here
    python3 make_expected.py FOLDER     # any others: FOLDER/*.jinja, to FOLDER/expected.json

The environment is that of `transformers` 5.23 (`utils/chat_template_utils.py`), at a fixed time. The
templates here are our own. They have the form and use the constructs of the public templates of Qwen 2.5,
Qwen 3, Hermes, Llama 3.1, Mistral and Gemma 3, whose texts are under licences of their own; the second form
of the command compares with those, where they are at hand.

expected.json has the conversations and, for each template, what each renders to, or null where the template
refuses it.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = 1_760_000_000
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather – \"now\" or later.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where, e.g. Zürich <CH>"},
            "days": {"type": "integer", "default": 1},
            "scale": {"type": "number", "enum": [1.0, 0.5, 1e-7]},
            "tags": {"type": "array", "items": {"type": ["string", "null"]}},
            "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
        "required": ["city"],
    },
}
NOW_TOOL = {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(ident, name, arguments):
    return {"id": ident, "name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}


ASK = say("user", "What's the weather in Zürich?\nAnd \"elsewhere\"?")
CALL = say("assistant", "", tool_calls=[call("abc123DEF", "get_weather", {"city": "Zürich", "days": 2})])
RESULT = say("tool", '{"temperature": 21.5}', tool_call_id="abc123DEF", name="get_weather")
TALK = [say("system", " Be brief. "), ASK, say("assistant", "Sunny. "), say("user", "Thanks")]

CASES = {
    "one": {"messages": [ASK]},
    "talk": {"messages": TALK},
    "no generation": {"messages": TALK + [say("assistant", "Bye")], "add_generation_prompt": False},
    "tools": {"messages": TALK, "tools": [WEATHER, NOW_TOOL]},
    "call": {"messages": [ASK, CALL, RESULT], "tools": [WEATHER]},
    "call and answer": {
        "messages": [TALK[0], ASK, CALL, RESULT, say("assistant", "21.5 degrees"), say("user", "Thanks!")],
        "tools": [WEATHER, NOW_TOOL],
    },
    "two calls": {
        "messages": [
            ASK,
            say("assistant", "Both:", tool_calls=[CALL["tool_calls"][0], call("000000001", "now", {})]),
            RESULT,
            say("tool", "noon", tool_call_id="000000001", name="now"),
        ],
        "tools": [WEATHER, NOW_TOOL],
    },
    "thoughts": {
        "messages": [
            ASK,
            say("assistant", "Sunny.", reasoning_content="Hm.\nSun?"),
            say("user", "Sure?"),
            say("assistant", "<think>\nWell\n</think>\n\nYes."),
            say("user", "Really?"),
        ],
    },
    "thoughts before a call": {
        "messages": [ASK, {**CALL, "reasoning_content": "I should look."}, RESULT],
        "tools": [WEATHER],
    },
    "no thinking": {"messages": [ASK], "variables": {"enable_thinking": False}},
    "thinking": {"messages": [ASK], "variables": {"enable_thinking": True}},
    "roles out of order": {"messages": [ASK, ASK]},
}


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(format)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def message(fields):
    """A call's arguments are handed over as an object."""
    if "tool_calls" not in fields:
        return fields
    calls = [
        {
            "id": c["id"],
            "type": "function",
            "function": {"name": c["name"], "arguments": json.loads(c["arguments"])},
        }
        for c in fields["tool_calls"]
    ]
    return {**fields, "tool_calls": calls}


def render(template, case):
    tools = [{"type": "function", "function": tool} for tool in case.get("tools", [])]
    try:
        return template.render(
            messages=[message(m) for m in case["messages"]],
            tools=tools or None,
            documents=None,
            add_generation_prompt=case.get("add_generation_prompt", True),
            **TOKENS,
            **case.get("variables", {}),
        )
    except (jinja2.exceptions.TemplateError, TypeError):
        return None


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    env = environment()
    expected = {}
    for path in sorted(folder.glob("*.jinja")):
        template = env.from_string(path.read_text(encoding="utf-8"))
        expected[path.name] = {name: render(template, case) for name, case in CASES.items()}
    written = {"now": NOW, "tokens": TOKENS, "cases": CASES, "expected": expected}
    text = json.dumps(written, ensure_ascii=False, indent=1)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
