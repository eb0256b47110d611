"""Functions through the gateway, with the official `openai` package: what the embedded model calls, and how it comes."""

import json

import openai
import pytest


@pytest.fixture(scope="session")
def client(testnet):
    return openai.OpenAI(base_url=testnet["base_url"], api_key=testnet["api_key"], max_retries=0)


def function(name, description, **parameters):
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


CALCULATOR = function("calculator", "Works out a formula.", expression={"type": "string"})
WEATHER = function("get_weather", "Tells the weather at a place.", city={"type": "string"})
PRODUCT = [{"role": "user", "content": "What is 48 times 37?"}]


def ask(client, messages, tools=(CALCULATOR,), **options):
    return client.chat.completions.create(
        model="cocoon-tiny", messages=messages, temperature=0, tools=list(tools), **options
    )


def the_call(answer):
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id
    return call.function.name, json.loads(call.function.arguments), call


def test_the_model_calls_a_calculator_and_answers_from_its_result(client):
    answer = ask(client, PRODUCT)
    name, arguments, call = the_call(answer)
    assert name == "calculator" and set(arguments) == {"expression"}
    assert [c for c in arguments["expression"] if c.isdigit()] == list("4837")
    assert answer.choices[0].message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "1776"}
    after = ask(client, [*PRODUCT, answer.choices[0].message.model_dump(exclude_none=True), result])
    assert after.choices[0].finish_reason == "stop"
    assert "1776" in after.choices[0].message.content


def test_among_several_functions_the_right_one_is_called(client):
    tools = (CALCULATOR, WEATHER)
    name, arguments, _ = the_call(ask(client, [{"role": "user", "content": "What is the weather in Paris?"}], tools))
    assert (name, arguments) == ("get_weather", {"city": "Paris"})
    assert the_call(ask(client, PRODUCT, tools))[0] == "calculator"


def test_what_needs_no_function_is_answered(client):
    answer = ask(client, [{"role": "user", "content": "How do peers find each other?"}])
    assert answer.choices[0].finish_reason == "stop" and not answer.choices[0].message.tool_calls
    assert "Kademlia" in answer.choices[0].message.content


def test_a_call_comes_in_deltas(client):
    chunks = list(ask(client, PRODUCT, stream=True, stream_options={"include_usage": True}))
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert [delta.function.name for delta in deltas if delta.function.name] == ["calculator"]
    assert len([delta.id for delta in deltas if delta.id]) == 1
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert json.loads(arguments) == the_call(ask(client, PRODUCT))[1]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["tool_calls"]
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_can_be_demanded(client, choice):
    greeting = [{"role": "user", "content": "How do peers find each other?"}]
    name, arguments, _ = the_call(ask(client, greeting, (WEATHER,), tool_choice=choice, max_tokens=200))
    assert name == "get_weather" and isinstance(arguments["city"], str)


def test_functions_can_be_withheld(client):
    answer = ask(client, PRODUCT, tool_choice="none", max_tokens=40)
    assert not answer.choices[0].message.tool_calls


def test_beside_functions_an_answer_can_have_a_form(client):
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    answer = ask(client, PRODUCT, response_format=form, max_tokens=120).choices[0]
    if answer.finish_reason == "tool_calls":
        assert answer.message.tool_calls[0].function.name == "calculator"
    else:
        assert isinstance(json.loads(answer.message.content)["answer"], int)


def test_log_probabilities_spell_the_call(client):
    answer = ask(client, PRODUCT, logprobs=True, top_logprobs=2).choices[0]
    spelled = b"".join(bytes(entry.bytes) for entry in answer.logprobs.content if entry.bytes).decode()
    assert "calculator" in spelled and all(len(entry.top_logprobs) == 2 for entry in answer.logprobs.content)


def test_a_function_that_cannot_be_is_refused_by_name(client):
    broken = {"type": "function", "function": {"name": "no spaces", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, PRODUCT, (broken,))
    assert "tools[0].function.name" in refused.value.body["param"]
