"""The tools, questions and words from which ``tools.py`` makes its documents; only data.

In the patterns ``{name}`` is a slot of the family, ``{+}`` the place where what is said of optional
parameters stands (without it they stand at the end), ``[a|b]`` one of the alternatives; ``{n}``,
``{d}``, ``{rare}`` and so on of a result are made up (``tools.result_of``).
"""

from __future__ import annotations

# ruff: noqa: E501
from dataclasses import dataclass, field

from lexicon import lines, words


@dataclass(frozen=True)
class Slot:
    """A parameter: the names that it may have, what its values are, and how an optional one is said."""

    names: list[str]
    values: str  # a name of tools.VALUES
    said: list[str] = field(default_factory=list)  # " in {}"


@dataclass(frozen=True)
class Family:
    """Tools that do one thing under many names."""

    topic: str
    names: list[str]
    descriptions: list[str]
    slots: dict[str, Slot]
    questions: list[str]
    results: list[str]
    answer: str  # to a result that is no sentence
    optional: dict[str, Slot] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)  # keys of a result in JSON
    many: bool = False  # "in {city}" may become "in Paris and Rome"


CITY = Slot(words("city, city, location, location, place, town, city_name, cityName, destination"), "city")
NUMBERS = {
    "a": Slot(["a", "a", "x", "first", "num1", "left"], "number"),
    "b": Slot(["b", "b", "y", "second", "num2", "right"], "number"),
}
SKY = "[sunny|cloudy|rainy|snowy|windy|foggy|clear|stormy|hot and dry|cold and wet|partly cloudy]"

FAMILIES = [
    Family(
        "weather",
        words("""get_weather, get_weather, get_weather, get_current_weather, get_current_weather, weather, weather,
        getWeather, current_weather, getCurrentWeather, weather_lookup, fetch_weather, get_temperature, weather_in,
        get_current_temperature, city_weather, check_weather, weather_tool"""),
        lines("""
        Get the weather.
        The weather of a city.
        The weather of a city
        Get the current weather in a given location
        Get the current weather for a city.
        Get weather of a location, the user should supply a location first.
        Get current temperature for a given location.
        Return the weather in a city.
        Fetch the weather for a given location.
        Look up the weather.
        Tells what the weather is like somewhere.
        Get the weather in a location
        """),
        {"city": CITY},
        lines("""
        What is the weather in {city}{+}?
        What is the weather in {city}{+}?
        What's the weather in {city}{+}?
        What's the weather like in {city}{+}?
        What is the weather like in {city} today{+}?
        What is the weather like in {city}{+}?
        How is the weather in {city}{+}?
        How's the weather in {city} today{+}?
        Tell me the weather in {city}{+}.
        Weather in {city}{+}?
        What is the temperature in {city}{+}?
        How warm is it in {city}{+}?
        How cold is it in {city} now{+}?
        Is it raining in {city}?
        Is it sunny in {city}?
        What will the weather be in {city}{+}?
        Give me the weather for {city}{+}.
        I am in {city}. What is the weather like here{+}?
        I'm going to {city}. What's the weather{+}?
        Do I need an umbrella in {city}?
        What's the weather like in {city} right now{+}?
        Please check the weather in {city}{+}.
        Can you tell me the weather in {city}{+}?
        Use the tool to get the weather in {city}{+}.
        """),
        [
            SKY,
            SKY + ", {n} degrees",
            "{n} degrees",
            "{n} degrees and " + SKY,
            "It is " + SKY + " in {city}.",
            "^" + SKY + " in {city}.",
            "The weather in {city} is " + SKY + ".",
            "It's always sunny in {city}!",
            "{n}",
            "{n}°C",
            "The weather in {city} is " + SKY + " with a temperature of {n} degrees.",
            "It's {n} degrees and " + SKY + ".",
        ],
        "The weather in {city} is {result}.",
        {
            "unit": Slot(
                words("unit, unit, units, temperature_unit, scale, format"),
                "unit",
                ["in {}", "(in {})", "in {} please", "in degrees {}"],
            )
        },
        words("temperature, condition, forecast, humidity, wind_speed, unit"),
        True,
    ),
    Family(
        "time",
        words("""get_time, get_time, get_current_time, get_current_time, current_time, time, clock, getTime, get_local_time,
        getCurrentTime, time_in, what_time, world_clock, get_datetime, time_tool"""),
        lines("""
        Get the current time.
        Get the current time in a given timezone
        The time in a place.
        Returns the current time.
        Tell the time.
        Get the current time in a specified time zone.
        A clock.
        """),
        {"city": Slot(words("city, location, place, city_name, town, area"), "city")},
        lines("""
        What time is it in {city}?
        What time is it in {city}?
        What time is it in {city} now?
        What is the time in {city}?
        What's the time in {city}?
        Tell me the time in {city}.
        Current time in {city}?
        What is the current time in {city}?
        How late is it in {city}?
        Can you tell me the time in {city}?
        """),
        [
            "[0|1][0|1|2|3|4|5|6|7|8|9]:[0|1|2|3|4|5]{d}",
            "{d}:[0|1|2|3|4|5]{d} [am|pm]",
            "It is {d}:[1|3|4]{d} in {city}.",
            "The time is 1{d}:2{d}.",
            "1{d}:0{d}:[1|2|5]{d}",
        ],
        "The time in {city} is {result}.",
        {},
        words("time, timezone, day"),
        True,
    ),
    Family(
        "zone",
        words(
            """get_time, get_time, get_current_time, get_current_time, current_time, clock, get_local_time, getCurrentTime, time_in_zone, world_clock"""
        ),
        lines("""
        Get the current time.
        Get the current time in a given timezone
        Returns the current time in a time zone.
        Get the current time in a specified time zone.
        """),
        {"city": Slot(words("timezone, timezone, timezone, tz, time_zone"), "zone")},
        lines("""
        What time is it in {city}?
        What time is it in {city}?
        What time is it in {city} now?
        What is the time in {city}?
        What's the time in {city}?
        Tell me the time in {city}.
        What is the current time in {city}?
        """),
        [
            "[0|1][0|1|2|3|4|5|6|7|8|9]:[0|1|2|3|4|5]{d}",
            "{d}:[0|1|2|3|4|5]{d} [am|pm]",
            "The time is 1{d}:2{d}.",
        ],
        "The time in {city} is {result}.",
        {},
        words("time, timezone, day"),
        True,
    ),
    Family(
        "now",
        words(
            """get_time, get_time, get_current_time, current_time, time, clock, now, get_now, getTime, get_datetime, time_now"""
        ),
        lines("""
        Get the current time.
        Returns the current time.
        Tell the time.
        The time now.
        The current date and time.
        A clock.
        """),
        {},
        lines("""
        What time is it?
        What time is it?
        What time is it now?
        What's the time?
        What is the time?
        What is the current time?
        Tell me the time.
        Tell me the time, please.
        Can you tell me what time it is?
        Do you know what time it is?
        How late is it?
        Time?
        """),
        [
            "[0|1][0|1|2|3|4|5|6|7|8|9]:[0|1|2|3|4|5]{d}",
            "{d}:[0|1|2|3|4|5]{d} [am|pm]",
            "It is {d}:[1|3|4]{d}.",
            "1{d}:0{d}:[1|2|5]{d}",
            "{date}T1{d}:[0|1|3]{d}:00",
            "{date} 1{d}:[0|1|3]{d}",
        ],
        "It is {result}.",
        {},
        words("time, day"),
    ),
    Family(
        "date",
        words(
            "get_date, get_today, today, current_date, get_current_date, date, getDate, todays_date, calendar"
        ),
        lines("""
        Get the current date.
        Returns the date of today.
        The date of today.
        What day it is.
        """),
        {},
        lines("""
        What is the date?
        What is the date today?
        What day is it?
        What day is it today?
        What's today's date?
        What is today's date?
        Tell me the date.
        Which day is today?
        """),
        [
            "{date}",
            "[Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday]",
            "[Monday|Friday|Sunday], {date}",
            "It is [Monday|Tuesday|Friday|Sunday].",
        ],
        "Today is {result}.",
        {},
        words("date, day"),
    ),
    Family(
        "calculate",
        words("""calculator, calculator, calculate, calculate, calc, evaluate, compute, eval_expression, do_math, math,
        evaluate_expression, math_tool, calculate_expression, solve"""),
        lines("""
        Evaluate a mathematical expression.
        Evaluate an arithmetic expression
        Calculates.
        A calculator.
        Useful for doing sums.
        Perform a calculation.
        Compute the value of an expression.
        Do math.
        """),
        {
            "sum": Slot(
                words("expression, expression, expression, formula, sum, input, expr, equation, calculation"),
                "expression",
            )
        },
        lines("""
        What is {sum}?
        What is {sum}?
        What's {sum}?
        Calculate {sum}.
        Calculate {sum}
        Compute {sum}.
        How much is {sum}?
        Please calculate {sum}.
        Can you work out {sum}?
        Work out {sum}.
        Evaluate {sum}.
        {sum}?
        Use the calculator for {sum}.
        What does {sum} make?
        """),
        ["{n}", "{n}{n}", "{n}.{d}", "The result is {n}.", "{n}{d}{d}"],
        "The result is {result}.",
        {},
        ["result"],
    ),
    Family(
        "add",
        words(
            "add, add, add, sum, add_numbers, addition, plus, addNumbers, add_two_numbers, get_sum, sum_two"
        ),
        lines("""
        Add two numbers.
        Add two numbers
        Add a and b.
        Adds a and b.
        The sum of two numbers.
        Sum two integers.
        Addition of two numbers
        """),
        NUMBERS,
        lines("""
        What is {a} + {b}?
        What is {a} + {b}?
        What is {a} plus {b}?
        What's {a} + {b}?
        Add {a} and {b}.
        Add {a} to {b}.
        Add {a} and {b}
        How much is {a} and {b}?
        What is the sum of {a} and {b}?
        Sum {a} and {b}.
        Please add {a} and {b}.
        Can you add {a} and {b}?
        {a} + {b}
        Calculate {a} + {b}.
        I have {a} apples and get {b} more. How many do I have?
        """),
        ["{n}", "{n}{n}", "{n}.{d}", "The result is {n}."],
        "The result is {result}.",
        {},
        ["result", "sum"],
    ),
    Family(
        "multiply",
        words(
            "multiply, multiply, multiply, times, product, multiply_numbers, mul, multiplication, multiplyNumbers"
        ),
        lines("""
        Multiply two numbers.
        Multiply two numbers
        Multiply a and b.
        Multiply two integers and returns the result integer
        Multiplies a and b.
        The product of two numbers.
        """),
        NUMBERS,
        lines("""
        What is {a} * {b}?
        What is {a} times {b}?
        What's {a} times {b}?
        What is {a} x {b}?
        What is {a} multiplied by {b}?
        Multiply {a} and {b}.
        Multiply {a} by {b}.
        How much is {a} times {b}?
        What is the product of {a} and {b}?
        Please multiply {a} by {b}.
        {a} * {b}
        Calculate {a} * {b}.
        Calculate {a} times {b}.
        """),
        ["{n}", "{n}{n}", "{n}.{d}", "The result is {n}."],
        "The result is {result}.",
        {},
        ["result", "product"],
    ),
    Family(
        "subtract",
        words("subtract, subtract, minus, difference, sub, subtract_numbers, subtraction"),
        lines("""
        Subtract two numbers.
        Subtract b from a.
        The difference of two numbers.
        """),
        NUMBERS,
        lines("""
        What is {a} - {b}?
        What is {a} minus {b}?
        What's {a} minus {b}?
        How much is {a} minus {b}?
        {a} - {b}
        Calculate {a} - {b}.
        Take the difference of {a} and {b}.
        """),
        ["{n}", "-{n}", "{n}.{d}", "The result is {n}."],
        "The result is {result}.",
        {},
        ["result", "difference"],
    ),
    Family(
        "divide",
        words("divide, divide, division, div, quotient, divide_numbers"),
        lines("""
        Divide two numbers.
        Divide a by b.
        Divide a and b.
        """),
        NUMBERS,
        lines("""
        What is {a} / {b}?
        What is {a} divided by {b}?
        Divide {a} by {b}.
        How much is {a} divided by {b}?
        Calculate {a} / {b}.
        {a} / {b}
        """),
        ["{n}", "{n}.{d}", "The result is {n}."],
        "The result is {result}.",
        {},
        ["result", "quotient"],
    ),
    Family(
        "translate",
        words(
            "translate, translate, translate_text, translator, translateText, translation, get_translation"
        ),
        lines("""
        Translate a text.
        Translate text into another language.
        Translates a text to a language.
        """),
        {
            "text": Slot(words("text, text, sentence, phrase, input, content, message"), "phrase"),
            "language": Slot(words("language, target_language, to, target, target_lang, lang"), "language"),
        },
        lines("""
        Translate "{text}" to {language}.
        Translate "{text}" into {language}.
        Translate '{text}' into {language}.
        How do you say "{text}" in {language}?
        What is "{text}" in {language}?
        Say "{text}" in {language}.
        Translate to {language}: {text}
        Translate {text} into {language}.
        Please translate "{text}" to {language}.
        """),
        ["{rare}", "{rare} {rare}", "{rare} {rare} {rare}"],
        "In {language} that is: {result}.",
        {},
        ["translation"],
    ),
    Family(
        "search",
        words("""search, search, search_web, web_search, google_search, searchWeb, search_documents, search_knowledge_base,
        internet_search, lookup, tavily_search, retrieve, search_tool, wikipedia, find_information"""),
        lines("""
        Search the web.
        Search the internet for information.
        Search for a query.
        A search engine.
        Call to surf the web.
        Useful for questions about facts.
        """),
        {"query": Slot(words("query, query, query, q, search_query, question, keywords, term"), "phrase")},
        lines("""
        Search for {query}.
        Search for "{query}".
        Search the web for {query}.
        Find information about {query}.
        Look up {query}.
        Look up "{query}" for me.
        Please search for {query}.
        Can you look up {query}?
        Google {query}.
        """),
        [
            "{rare} is a [town|river|person|book|game] in {city0}.",
            "No results.",
            "There are {n} results.",
            "{rare} was born in {city0}.",
        ],
        "The search says: {result}.",
        {
            "limit": Slot(
                words("limit, max_results, num_results, k, top_k, count, n"),
                "count",
                ["with {} results", "(at most {} results)", "and show {} results"],
            )
        },
        ["title", "text"],
    ),
    Family(
        "currency",
        words(
            """convert_currency, currency_converter, convert, convertCurrency, exchange, currency_convert, get_exchange_value"""
        ),
        lines("""
        Convert money from one currency to another.
        Convert an amount between currencies.
        Currency converter.
        """),
        {
            "amount": Slot(words("amount, amount, value, money, sum"), "number"),
            "from": Slot(words("from_currency, from, source, base, from_unit, source_currency"), "currency"),
            "to": Slot(words("to_currency, to, target, to_unit, target_currency"), "currency"),
        },
        lines("""
        Convert {amount} {from} to {to}.
        Convert {amount} {from} into {to}.
        How much is {amount} {from} in {to}?
        What is {amount} {from} in {to}?
        Change {amount} {from} to {to}.
        Exchange {amount} {from} for {to}.
        How many {to} are {amount} {from}?
        """),
        ["{n}", "{n}.{d}{d}", "{n}.{d}"],
        "{amount} {from} are {result} {to}.",
        {},
        ["result", "rate"],
    ),
    Family(
        "dice",
        words("roll_dice, roll_dice, roll_die, dice, rollDice, roll, throw_dice, throw_die"),
        lines("""
        Roll a die.
        Roll a six-sided die and return the result.
        Roll a dice.
        Rolls dice.
        """),
        {},
        lines("""
        Roll a die{+}.
        Roll a dice{+}.
        Roll the dice{+}.
        Roll the dice{+}
        Please roll a die{+}.
        Can you roll a die{+}?
        Throw a die{+}.
        Throw the dice{+}.
        My guess is [1|2|3|4|5|6]. Roll a die{+}.
        Roll a die for me{+}.
        """),
        ["{d}", "You rolled a {d}.", "{n}"],
        "You rolled {result}.",
        {
            "sides": Slot(
                words("sides, sides, n, num_sides, faces, max"),
                "count",
                ["with {} sides", "that has {} sides", "of {} sides"],
            )
        },
        ["result"],
    ),
    Family(
        "random",
        words(
            "random_number, get_random_number, random_int, randomNumber, pick_number, random, generate_number"
        ),
        lines("""
        Get a random number.
        A random number between two numbers.
        Pick a random number.
        """),
        {
            "low": Slot(words("min, low, start, a, minimum, lower"), "count"),
            "high": Slot(words("max, high, end, b, maximum, upper"), "count"),
        },
        lines("""
        Give me a random number between {low} and {high}.
        Pick a number between {low} and {high}.
        Pick a random number from {low} to {high}.
        A random number between {low} and {high}, please.
        """),
        ["{n}", "{n}{n}"],
        "The number is {result}.",
        {},
        ["number"],
    ),
    Family(
        "user",
        words(
            "get_user, get_user, find_user, lookup_user, getUser, user_info, get_user_info, fetch_user, get_customer, get_player_name, get_person"
        ),
        lines("""
        Get a user.
        Look up a user.
        Get the user with this id.
        Returns what is known of a person.
        """),
        {
            "user": Slot(
                words("user_id, id, name, username, user, user_name, email, userId, customer_id"), "who"
            )
        },
        lines("""
        Who is the user {user}?
        Get the user {user}.
        Find the user {user}.
        Look up user {user}.
        Show me user {user}.
        What do you know about the user {user}?
        Tell me about user {user}.
        Get user {user}
        """),
        ["{person}", "{person} {rare}", "not found", "{person} lives in {city0}.", "{person}, {n} years old"],
        "The user is {result}.",
        {},
        words("name, city, age"),
    ),
    Family(
        "order",
        words(
            "get_order, get_order_status, order_status, get_delivery_date, track_order, trackOrder, find_order, check_order, retrieve_payment_status, getOrderStatus"
        ),
        lines("""
        Get the status of an order.
        Get the delivery date for a customer's order.
        Track an order.
        Get payment status of a transaction
        """),
        {
            "order": Slot(
                words("order_id, order_id, id, number, orderId, order_number, transaction_id, order"), "code"
            )
        },
        lines("""
        Where is my order {order}?
        What is the status of order {order}?
        What is the status of my order {order}?
        Track order {order}.
        When will my order {order} arrive?
        Has order {order} been sent?
        What's the status of my transaction {order}?
        Check order {order}.
        """),
        [
            "[sent|paid|delivered|on its way|lost|waiting|cancelled]",
            "Paid",
            "It arrives on {date}.",
            "{date}",
        ],
        "The order {order} is {result}.",
        {},
        words("status, date"),
    ),
    Family(
        "email",
        words(
            "send_email, send_email, sendEmail, send_mail, email, mail, send_message, sendMessage, write_email"
        ),
        lines("""
        Send an email.
        Send a message to somebody.
        Send an email to a given recipient with a message.
        """),
        {
            "to": Slot(words("to, to, recipient, address, to_address, receiver, email"), "mail"),
            "text": Slot(words("body, text, message, content, body"), "phrase"),
        },
        lines("""
        Send an email to {to} saying "{text}".
        Send an email to {to} that says {text}.
        Send {to} the message "{text}".
        Write an email to {to}: {text}
        Email {to} and say "{text}".
        Send a message to {to} saying {text}.
        Tell {to} by email: {text}
        """),
        ["sent", "ok", "true", "The email was sent.", "done"],
        "The message to {to} is {result}.",
        {},
        ["status"],
    ),
    Family(
        "remind",
        words(
            "set_reminder, create_reminder, remind, add_reminder, setReminder, remind_me, create_todo, add_todo, add_task"
        ),
        lines("""
        Set a reminder.
        Create a reminder for later.
        Add something to the list of things to do.
        """),
        {"text": Slot(words("text, task, title, message, what, content, reminder"), "chore")},
        lines("""
        Remind me to {text}{+}.
        Remind me to {text}{+}
        Please remind me to {text}{+}.
        Set a reminder to {text}{+}.
        Add a reminder to {text}{+}.
        """),
        ["ok", "done", "saved", "set", "The reminder is set."],
        "The reminder is {result}.",
        {"time": Slot(words("time, when, at, due, time"), "clock", ["at {}", "at {} please"])},
        ["status", "id"],
    ),
    Family(
        "lights",
        words(
            "set_light_values, set_lights, set_brightness, dim_lights, light, setLights, set_light, control_light"
        ),
        lines("""
        Set the brightness and color of the light.
        Set the brightness of a room light.
        Control the lights.
        """),
        {"level": Slot(words("brightness, brightness, level, value, percent"), "percent")},
        lines("""
        Set the lights to {level}{+}.
        Set the light to {level}{+}.
        Dim the lights to {level}{+}.
        Set the brightness to {level}{+}.
        Turn the lights to {level} percent{+}.
        Make the light {level} percent bright{+}.
        """),
        ["ok", "done", "on", "The light is set."],
        "The light is {result}.",
        {
            "color": Slot(
                words("color, color_temp, temperature, mode"), "light", ["and {}", "with {} light", "in {}"]
            )
        },
        ["brightness"],
    ),
    Family(
        "handoff",
        words("""transfer_to_weatherman, transfer_to_billing, transfer_to_support, transfer_to_sales, transfer_to_spanish_agent,
        transfer_to_refund_agent, transfer_to_tutor, transfer_to_agent"""),
        ["Handoff to the {} agent to handle the request.", "Hand over to {}."],
        {},
        lines("""
        I want to talk to {role}.
        Let me talk to {role}.
        Please transfer me to {role}.
        Connect me to {role}.
        I would like to speak with {role}, please.
        """),
        ["ok", "done"],
        "You are connected now.",
    ),
]
"""Known tools: those that first examples have."""

# --- words of values ------------------------------------------------------------------------------

ZONES = {
    "Europe": words("""London, Paris, Berlin, Rome, Madrid, Vienna, Lisbon, Dublin, Oslo, Stockholm, Copenhagen, Helsinki, Warsaw,
    Prague, Budapest, Athens, Brussels, Amsterdam, Zurich, Istanbul, Moscow, Bucharest, Sofia, Riga"""),
    "America": words("""New York, Los Angeles, Chicago, Toronto, Vancouver, Denver, Boston, Mexico City, Lima, Bogota, Havana,
    Sao Paulo, Santiago, Caracas, Phoenix, Detroit, Montevideo, Panama"""),
    "Asia": words("""Tokyo, Seoul, Shanghai, Singapore, Hong Kong, Bangkok, Jakarta, Manila, Dubai, Delhi, Karachi, Tehran,
    Baghdad, Jerusalem, Kathmandu, Dhaka, Taipei, Hanoi"""),
    "Africa": words("Cairo, Lagos, Nairobi, Casablanca, Tunis, Accra, Algiers, Dakar, Johannesburg, Kampala"),
    "Australia": words("Sydney, Melbourne, Perth, Brisbane, Adelaide, Hobart, Darwin"),
    "Pacific": words("Auckland, Fiji, Honolulu, Guam"),
}
CITIES = words("""
San Francisco, San Francisco, Seattle, Austin, Houston, Miami, Atlanta, Dallas, Portland, San Diego, Las Vegas, Philadelphia,
Washington, Munich, Hamburg, Cologne, Frankfurt, Milan, Venice, Naples, Florence, Barcelona, Seville, Lyon, Nice, Marseille,
Geneva, Basel, Bern, Manchester, Liverpool, Edinburgh, Glasgow, Cardiff, Oxford, Cambridge, Kyoto, Osaka, Beijing, Mumbai,
Bangalore, Chennai, Kolkata, Rio de Janeiro, Buenos Aires, Cape Town, Marrakesh, Reykjavik, Kyiv, Krakow, Porto, Valencia,
Salzburg, Utrecht, Bergen, Malmo, Tallinn, Vilnius, Minsk, Belgrade, Zagreb, Ljubljana, Split, Palermo, Malta, Ankara, Izmir,
Beirut, Amman, Doha, Riyadh, Kuwait, Muscat, Tbilisi, Baku, Tashkent, Quito, La Paz, Montreal, Ottawa, Calgary, Winnipeg,
Santa Fe, Salt Lake City, New Orleans, Nashville, Memphis, Boulder, Tampa, Orlando, Anchorage, Bruges, Ghent, Antwerp, Leeds,
Bath, York, Brighton, Bristol, Cork, Galway, France, Spain, Japan, Italy, Norway, Kenya, Brazil, Canada, Iceland, Peru, SF, NYC, LA
""")
STATES = words(
    "CA, NY, TX, WA, MA, USA, UK, France, Germany, Italy, Japan, Spain, Canada, India, IL, FL, CO, OR"
)
CURRENCIES = words(
    "USD, EUR, GBP, JPY, CHF, CAD, AUD, CNY, INR, SEK, NOK, BRL, MXN, dollars, euros, pounds, yen, francs, rupees, pesos, kroner"
)
LANGUAGES = words(
    "French, German, Spanish, Italian, Japanese, Chinese, Portuguese, Russian, Dutch, Polish, Swedish, Greek, Latin, Arabic, Hindi, Korean, Turkish, English, Danish, Finnish"
)
CHORES = lines("""
call {person}
call mom
call my mother
buy {food}
water the plants
feed the {animal}
clean the {thing}
bring the {thing} to {person}
go to bed
write to {person}
pay the bill
visit {person}
read a book
""")
MAIL_HOSTS = words("example.com, example.org, mail.com, test.net, work.io, gmail.com")
ENUMS = [
    words(block)
    for block in lines("""
    low, medium, high
    small, medium, large
    red, green, blue
    red, yellow, green, black
    north, south, east, west
    hot, cold
    warm, cool, daylight
    asc, desc
    fast, slow
    open, closed
    todo, doing, done
    json, text, xml
    daily, weekly, monthly
    morning, noon, evening, night
    car, bus, train, plane
    public, private
    celsius, fahrenheit
    metric, imperial
    short, long
    left, right, up, down
    easy, normal, hard
    economy, business, first
    cash, card
    cat, dog, bird
    gold, silver, bronze
    jazz, rock, pop, classical
    urgent, normal
    square, circle, triangle
    male, female
    summer, winter
    """)
]

# --- tools put together from words ----------------------------------------------------------------

READS = words(
    "get, get, find, fetch, lookup, read, check, show, query, retrieve, load, list, search, view, tell, look_up, give"
)
ACTS = words("""set, create, add, delete, remove, update, open, close, start, stop, send, print, book, cancel, order, save, play,
pause, move, copy, rename, share, lock, unlock, clean, paint, build, repair, sell, buy, hide, schedule, call, invite, pick,
upload, download, publish, archive, restore, rate, choose, activate, assign, register, reset, measure, weigh, count, wash,
cook, bake, draw, plant, test, rent, borrow, return, sort, tag, block, follow, mark, merge, rotate, run, approve, change, make""")
NOUNS = words("""
price, color, size, weight, age, name, address, birthday, height, speed, distance, depth, length, balance, score, level,
status, title, owner, author, number, phone, email, menu, recipe, schedule, route, map, population, capital, temperature,
humidity, forecast, rating, review, summary, definition, meaning, synonym, rhyme, joke, quote, news, event, meeting, ticket,
table, room, hotel, flight, car, taxi, bus, train, boat, invoice, payment, account, customer, employee, manager, team,
project, task, issue, ticket, note, file, folder, document, page, image, photo, video, movie, book, song, album, playlist,
artist, game, player, match, door, window, lamp, heater, alarm, timer, robot, garden, plant, flower, tree, animal, pet, fish,
dog, cat, horse, cake, pizza, coffee, tea, sandwich, soup, fruit, shirt, shoe, hat, box, parcel, letter, stamp, key, lock,
sensor, camera, printer, server, database, record, row, message, channel, group, tag, label, link, report, chart, backup,
product, stock, item, cart, discount, coupon, gift, holiday, course, lesson, teacher, student, exam, grade, star, planet,
moon, tide, river, lake, mountain, island, castle, museum, park, road, bridge, station, airport, harbor, shop, market, bank
""")
PARAMETERS = words("""
name, id, title, key, item, target, user, city, date, time, path, url, type, category, color, size, count, limit, amount,
quantity, level, owner, place, number, code, label, format, language, country, age, weight, price, day, month, year, room,
start, end, speed, depth, group, topic, subject, text, note, mode, status, priority, width, height, duration, distance,
max_results, page_size, user_id, start_date, end_date, first_name, last_name, street, zip_code, file_name, order_id
""")
READ_QUESTIONS = lines("""
What is the {noun} of {value}{+}?
What is the {noun} of {value}{+}?
What is the {noun} for {value}{+}?
What's the {noun} of {value}{+}?
Get the {noun} of {value}{+}.
Get me the {noun} for {value}{+}.
Show me the {noun} of {value}{+}.
Find the {noun} of {value}{+}.
Find the {noun} for {value}{+}
Tell me the {noun} of {value}{+}.
I need the {noun} of {value}{+}.
Look up the {noun} of {value}{+}.
{noun} of {value}{+}?
Can you find the {noun} of {value}{+}?
Do you know the {noun} of {value}{+}?
Which {noun} does {value} have{+}?
""")
ACT_QUESTIONS = lines("""
{verb} the {noun} {value}{+}.
{verb} the {noun} {value}{+}.
{verb} the {noun} {value}{+}
{verb} a {noun} called {value}{+}.
{verb} a {noun} named {value}{+}.
{verb} the {noun} for {value}{+}.
{verb} a {noun} for {value}{+}.
{verb} {noun} {value}{+}.
Please {verb} the {noun} {value}{+}.
Can you {verb} the {noun} {value}{+}?
Can you {verb} a {noun} for {value}{+}?
I want to {verb} the {noun} {value}{+}.
{verb} my {noun} {value}{+}.
Could you please {verb} the {noun} {value}{+}?
""")
NAME_QUESTIONS = lines("""
Use {tool} with {value}{+}.
Use {tool} for {value}{+}.
Call {tool} with {value}{+}.
Run {tool} on {value}{+}.
Please use {tool} for {value}{+}.
Call the tool {tool} with {value}{+}
Use the {tool} tool for {value}{+}.
""")
EXTRAS = lines("""
with {name} {value}
with {name} {value}
with the {name} {value}
, {name} {value}
and {name} {value}
with a {name} of {value}
, {name}: {value}
({name} {value})
({name}: {value})
for {name} {value}
where the {name} is {value}
{name}={value}
at {name} {value}
""")
READ_DESCRIPTIONS = lines("""
Get the {noun} of a {parameter}.
The {noun} of a {parameter}.
Returns the {noun}.
Get the {noun} for a given {parameter}.
Find out the {noun} of something.
{verb} the {noun}.
Look up a {noun} by its {parameter}.
Useful when you need the {noun} of a {parameter}.
""")
ACT_DESCRIPTIONS = lines("""
{verb} a {noun}.
{verb} the {noun}.
{verb} a {noun} by its {parameter}.
This will {verb} the {noun} with the given {parameter}.
{verb} one {noun} of the user.
Use this to {verb} a {noun}.
""")
OTHER_DESCRIPTIONS = lines("""
Does what it says.
A tool.
Use with care.
Internal helper.
Calls the service and returns its answer.
""")
ROLES = {
    "weatherman": ["the weatherman"],
    "billing": ["billing", "the billing team"],
    "support": ["support", "somebody from support"],
    "sales": ["sales", "the sales team"],
    "spanish_agent": ["somebody who speaks Spanish", "the Spanish agent"],
    "refund_agent": ["the refund agent", "somebody about a refund"],
    "tutor": ["a tutor", "the tutor"],
    "agent": ["an agent", "a human agent"],
}
INSTRUCTIONS = lines("""
You are a {role}.
You are an agent who knows about {words}.
You are an assistant for {words}.
You are a helpful weather agent.
You help the user with {words}.
Use {tool} where it helps.
Always use the tools that you have.
Use the tool {tool} to answer questions about {words}.
Always answer in one sentence.
Talk like a {role}.
Respond in haiku.
Do not make things up.
The user is called {words}.
If you do not know, say so.
You have tools.
Today is a good day for {words}.
""")
