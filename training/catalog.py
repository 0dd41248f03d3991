"""Everyday functions: what they are called, what they take, and how people ask for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter. `kind` says what fills it: city, name, food, noun, words, number, language, currency, ..."""

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Functions of one `group` never stand beside each other. Braces name slots by position: {0}, {1}.

    `wants` continues "The user wants"; `final` is followed by what the tool said.
    """

    group: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    slots: tuple[Slot, ...]
    asks: tuple[str, ...]
    wants: str
    final: str
    result: str  # weather, number, degrees, time, money, done, text, word


CITY = Slot("city", ("city", "city", "city", "location", "location", "place", "town", "city_name"))
NAME = Slot("name", ("name", "name", "user", "person", "user_name"))
QUERY = Slot("words", ("query", "query", "q", "text"))

CATALOG = (
    Entry("weather", ("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "check_weather",
                      "fetch_weather", "get_forecast", "weather_lookup"),
          ("Get the weather in a city", "Get the weather in a city.", "Gets the weather.", "Get current weather",
           "Returns the weather for a place.", "Get the current weather in a given location", "The weather now"),
          (CITY,),
          ("What is the weather in {0}?", "What is the weather in {0}?", "What's the weather in {0}?", "Weather in {0}",
           "What's the weather like in {0}?", "What's the weather like in {0} today?", "How is the weather in {0}?",
           "what is the weather in {0}", "Weather in {0}?", "Tell me the weather in {0}.", "weather {0}",
           "What is the weather like in {0} now?", "Is it raining in {0}?", "Will it rain in {0} today?",
           "Check the weather in {0}.", "What is the weather in {0} today?", "How's the weather in {0} right now?",
           "Please get the weather in {0}.", "Can you check the weather in {0}?", "I need the weather for {0}.",
           "Hi! What is the weather in {0}?", "What is the forecast for {0}?", "what's the weather in {0}?"),
          "the weather in {0}", "The weather in {0}", "weather"),
    Entry("weather", ("get_temperature", "temperature", "check_temperature", "read_temperature"),
          ("Get the temperature in a city", "The current temperature", "Returns the temperature."), (CITY,),
          ("What is the temperature in {0}?", "How warm is it in {0}?", "How cold is it in {0}?", "temperature in {0}",
           "What's the temperature in {0} now?", "How hot is it in {0} today?", "Tell me the temperature in {0}."),
          "the temperature in {0}", "The temperature in {0}", "degrees"),
    Entry("time", ("get_time", "get_current_time", "current_time", "get_local_time", "time_in"),
          ("Tells the time", "Get the time in a city", "The current time in a place."), (CITY,),
          ("What time is it in {0}?", "What time is it in {0} now?", "what time is it in {0}", "Time in {0}?",
           "What is the time in {0}?", "Tell me the time in {0}.", "What's the local time in {0}?"),
          "the time in {0}", "The time in {0}", "time"),
    Entry("time", ("get_time", "get_current_time", "current_time", "now", "clock"),
          ("Tells the time", "Get the current time.", "The current time",
           "The current local date and time, ISO 8601."), (),
          ("What time is it?", "What time is it now?", "what time is it", "Tell me the time.", "What's the time?",
           "Do you know the time?", "What time is it, please?", "time please"),
          "the time", "The time", "time"),
    Entry("date", ("get_date", "today", "get_current_date", "current_date"),
          ("Tells the date", "Get the current date.", "Today's date"), (),
          ("What day is it?", "What is the date today?", "What's the date?", "Tell me the date.", "Which day is it?"),
          "the date", "The date", "date"),
    Entry("search", ("search", "search", "web_search", "search_web", "search_documents", "find", "search_notes"),
          ("Search the web", "Searches the web.", "Search for something", "Find documents"), (QUERY,),
          ("Search for {0}", "Search for {0}.", "Please search for {0}.", "search {0}", "Search the web for {0}.",
           "Can you search for {0}?", "Look for {0}.", "Find something about {0}."),
          "a search for {0}", "Found for {0}", "text"),
    Entry("price", ("get_price", "lookup_price", "check_price", "get_price", "find_price", "price_of"),
          ("Get the price of an item", "Look up a price", "Returns the price."),
          (Slot("thing", ("item", "item", "product", "name", "article", "title")),),
          ("How much is the {0}?", "What is the price of the {0}?", "How much does the {0} cost?", "Price of {0}?",
           "What does the {0} cost?", "Look up the price of {0}.", "Find the price of {0}", "What's the price of {0}?",
           "How much is {0}?", "Get the price of {0}."),
          "the price of {0}", "The price of {0}", "money"),
    Entry("user", ("get_user", "lookup_user", "find_user", "find_person", "lookup_person", "get_contact"),
          ("Look up a person", "Find a user by name", "Returns what is known about a user."), (NAME,),
          ("Who is {0}?", "Look up {0}.", "Look up the user {0}.", "Find the user {0}", "Who is {0}", "look up {0}",
           "Get the contact {0}.", "Find {0} in the list of users."),
          "to know about {0}", "About {0}", "text"),
    Entry("mail", ("send_email", "send_email", "send_message", "send_mail", "email", "message", "notify"),
          ("Send an email", "Send a message to someone", "Sends a message."),
          (Slot("name", ("to", "to", "recipient", "name")), Slot("words", ("text", "message", "body", "content"))),
          ("Send {0} the message {1}", "Send a message to {0}: {1}", "Tell {0} that {1}", "Write to {0}: {1}",
           "Email {0}: {1}", "Send an email to {0} that says {1}", "Send {0} an email: {1}", "Message {0}: {1}"),
          "to write to {0}", "Sent to {0}", "done"),
    Entry("translate", ("translate", "translate", "translate_text", "translation"),
          ("Translate text", "Translates text to a language.", "Translate a text into another language"),
          (Slot("words", ("text", "text", "words", "input")),
           Slot("language", ("language", "target_language", "to", "target"))),
          ("Translate {0} to {1}.", "Translate {0} into {1}", "How do you say {0} in {1}?", "What is {0} in {1}?",
           "Please translate {0} to {1}.", "{0} in {1}?"),
          "{0} in {1}", "In {1}", "words"),
    Entry("alarm", ("set_alarm", "set_alarm", "create_alarm", "add_alarm", "wake_me"),
          ("Set an alarm", "Sets an alarm.", "Set an alarm for a time"),
          (Slot("clock", ("time", "time", "at", "when")),),
          ("Set an alarm for {0}.", "Set an alarm for {0}", "Wake me at {0}.", "Wake me up at {0}", "Alarm at {0}",
           "Please set an alarm for {0}.", "I need an alarm at {0}."),
          "an alarm at {0}", "The alarm at {0}", "done"),
    Entry("timer", ("set_timer", "start_timer", "timer", "create_timer"),
          ("Start a timer", "Sets a timer for some minutes.", "A timer"),
          (Slot("small", ("minutes", "minutes", "duration", "time")),),
          ("Set a timer for {0} minutes.", "Start a timer for {0} minutes", "Timer for {0} minutes",
           "{0} minute timer, please", "Set a {0} minute timer."),
          "a timer for {0} minutes", "The timer for {0} minutes", "done"),
    Entry("convert", ("convert_currency", "convert", "exchange", "convert_money"),
          ("Convert money", "Converts an amount to another currency.", "Convert an amount between currencies"),
          (Slot("number", ("amount", "amount", "value")), Slot("currency", ("from", "source", "from_currency")),
           Slot("currency", ("to", "target", "to_currency"))),
          ("Convert {0} {1} to {2}.", "Convert {0} {1} into {2}", "How much is {0} {1} in {2}?", "{0} {1} in {2}",
           "What is {0} {1} in {2}?", "Change {0} {1} to {2}."),
          "{0} {1} in {2}", "{0} {1} in {2}", "money"),
    Entry("flight", ("book_flight", "book_flight", "find_flight", "search_flights", "book_trip"),
          ("Book a flight", "Books a flight.", "Find a flight between two cities"),
          (Slot("city", ("origin", "from", "from_city", "start")),
           Slot("city", ("destination", "to", "to_city", "end"))),
          ("Book a flight from {0} to {1}.", "Book a flight from {0} to {1}", "Find a flight from {0} to {1}.",
           "I need a flight from {0} to {1}.", "Fly me from {0} to {1}.", "I want to fly from {0} to {1}"),
          "a flight from {0} to {1}", "The flight from {0} to {1}", "done"),
    Entry("hotel", ("book_hotel", "find_hotel", "search_hotels", "book_room"),
          ("Book a hotel", "Find a hotel in a city", "Books a room."),
          (CITY, Slot("small", ("nights", "days", "count"))),
          ("Book a hotel in {0} for {1} nights.", "Find a hotel in {0} for {1} nights", "I need a room in {0} for {1} "
           "nights.", "Book a room in {0} for {1} nights"),
          "a hotel in {0} for {1} nights", "The hotel in {0}", "done"),
    Entry("food", ("order_food", "buy_food", "order", "place_order"),
          ("Order food", "Orders food.", "Place an order"),
          (Slot("food", ("item", "food", "dish", "name")), Slot("small", ("count", "quantity", "amount", "number"))),
          ("Order {1} {0}.", "Order {1} {0}, please", "I want {1} {0}.", "Please order {1} {0}.", "Buy {1} {0}"),
          "{1} {0}", "The order of {1} {0}", "done"),
    Entry("recipe", ("get_recipe", "find_recipe", "recipe"),
          ("Find a recipe", "Returns a recipe.", "Get a recipe for a dish"),
          (Slot("food", ("dish", "food", "ingredient", "name")),),
          ("Find a recipe for {0}.", "Give me a recipe for {0}", "How do I make {0}?", "I need a recipe with {0}.",
           "Recipe for {0}"),
          "a recipe for {0}", "The recipe for {0}", "text"),
    Entry("music", ("play_music", "play_song", "play"),
          ("Play music", "Plays a song.", "Play a song by its title"),
          (Slot("words", ("title", "song", "name", "track")),),
          ("Play {0}.", "Play the song {0}.", "Play {0}, please", "I want to hear {0}.", "play {0}"),
          "to hear {0}", "The song {0}", "done"),
    Entry("switch", ("turn_on", "turn_off", "open", "close", "start", "stop"),
          ("Switch a device", "Controls a device.", ""), (Slot("thing", ("device", "name", "item", "target")),),
          ("{verb} the {0}.", "{verb} the {0}", "Please {low} the {0}.", "Can you {low} the {0}?"),
          "to {low} the {0}", "The {0}", "done"),
    Entry("note", ("create_note", "save_note", "add_note", "write_note", "add_task", "create_task"),
          ("Save a note", "Adds it to the list.", "Create a new entry"),
          (Slot("words", ("text", "content", "note", "title")),),
          ("Note: {0}", "Write down: {0}", "Save a note: {0}", "Add this to my list: {0}", "Remind me: {0}"),
          "to note {0}", "The note {0}", "done"),
    Entry("news", ("get_news", "news", "find_news", "read_news"),
          ("Get the news", "News about a topic.", "Returns the latest news"),
          (Slot("noun", ("topic", "subject", "about", "query")),),
          ("What is the news about {0}?", "Get the news about {0}.", "News about {0}", "Any news about {0}?"),
          "news about {0}", "The news about {0}", "text"),
    Entry("population", ("get_population", "population", "lookup_population"),
          ("Get the population of a city", "How many people live somewhere", "Population of a place."), (CITY,),
          ("How many people live in {0}?", "What is the population of {0}?", "population of {0}",
           "Tell me the population of {0}."),
          "the population of {0}", "The population of {0}", "number"),
    Entry("capital", ("get_capital", "capital", "find_capital", "lookup_capital"),
          ("Get the capital of a country", "The capital of a country.", "Finds the capital"),
          (Slot("country", ("country", "country", "name", "state")),),
          ("What is the capital of {0}?", "capital of {0}", "Tell me the capital of {0}.", "Which city is the capital "
           "of {0}?", "What's the capital of {0}?"),
          "the capital of {0}", "The capital of {0}", "city"),
    Entry("status", ("get_status", "check_order", "get_order", "track_order", "order_status"),
          ("Get the status of an order", "Looks up an order.", "Track an order by its number"),
          (Slot("number", ("order_id", "id", "number", "order")),),
          ("Where is my order {0}?", "What is the status of order {0}?", "Track order {0}.", "Check order {0}",
           "What about my order {0}?", "Look up order {0}."),
          "the status of order {0}", "The order {0}", "done"),
    Entry("file", ("read_file", "open_file", "delete_file", "get_file"),
          ("Works on a file", "Handles a file by name.", ""),
          (Slot("noun", ("path", "file", "name", "file_name")),),
          ("{verb} the file {0}.", "{verb} the file {0}", "Please {low} the file {0}.", "{verb} file {0}"),
          "to {low} the file {0}", "The file {0}", "text"),
    Entry("dice", ("roll_dice", "roll", "random_number", "get_random"),
          ("Roll a die", "A random number.", "Returns a random number"),
          (Slot("small", ("sides", "max", "limit", "n")),),
          ("Roll a die with {0} sides.", "Roll a {0} sided die", "Give me a random number up to {0}.",
           "A random number up to {0}, please"),
          "a random number up to {0}", "The random number", "number"),
)  # fmt: skip

ASKED_WITHOUT_A_TOOL = ("search", "price", "user", "mail", "translate", "food", "recipe", "music", "note", "news")
"""Groups for things that people ask as well when no function is on offer, which is then beyond the model."""
NAMES_ASKED_FOR = frozenset(name for entry in CATALOG if entry.group in ASKED_WITHOUT_A_TOOL for name in entry.names)
WORDS_IN_NAMES = frozenset(word for entry in CATALOG for name in entry.names for word in name.split("_"))
