"""The words and sentence patterns from which ``train_model.py`` makes its stories.

Only data lives here: word lists first, then the plots and the sentence
patterns of every beat of a plot, then the small talk of the chat form.

How a pattern is read:

``[a|b|c]``
    one of the alternatives (an empty one is allowed);
``{h}``, ``{f}``, ``{p}``, ``{b}``
    the hero, a friend or helper, the hero's elder and a small creature. Plain,
    the slot is the subject ("Lily", "the old sailor" or, where nobody can
    mistake it, "she"). ``.a`` is the first mention ("an old sailor"), ``.o`` the
    object ("her"), ``.n`` the name in any case, ``.s`` the possessive of the
    name; ``.he .him .his .himself .was .my`` are forms which agree with it;
    ``.said``, ``.asked`` and the like are the speech tags of a quotation;
    ``{hf.they}`` and ``{ha.they}`` are the hero together with the friend or with others ("we" for the narrator);
``{place}``, ``{obj}``, ``{food}`` ... (also with a digit: ``{place2}``)
    a thing picked once for each story and then kept;
``{~list}``
    a fresh pick from a list;
``{when}``
    "One day," after a general opening, "Soon," after one set at a moment;
``^``
    the next letter is a capital.

A pattern that starts with ``1>`` needs a hero who is one person, ``3>`` a hero
who is not the narrator, ``13>`` both.
"""

from __future__ import annotations

# ruff: noqa: E501


def words(text: str) -> list[str]:
    """Split a block of comma-separated words."""
    return [word.strip() for word in text.replace("\n", " ").split(",") if word.strip()]


def lines(text: str) -> list[str]:
    """Split a block into its lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def sections(text: str) -> dict[str, list[str]]:
    """Split a block into lists of patterns, each under a ``## name`` line."""
    table: dict[str, list[str]] = {}
    name = ""
    for line in lines(text):
        if line.startswith("## "):
            name = line[3:]
            table[name] = []
        else:
            table[name].append(line)
    return table


# --------------------------------------------------------------------- people

GIRLS = words("""
Lily, Mia, Anna, Emma, Sara, Lucy, Rose, Ella, Nina, Zoe, Ruby, Molly, Grace, Amy, Kate, Julia, Clara,
Alice, Maya, Lena, Eva, Nora, Ida, Tina, Sophie, Olivia, Hannah, Ivy, Daisy, Poppy, Holly, Jane, Mary,
Susan, Betty, Peggy, Maria, Rosa, Carmen, Elena, Lola, Ines, Chloe, Camille, Amelie, Freya, Astrid,
Ingrid, Greta, Heidi, Olga, Vera, Tanya, Mira, Leila, Fatima, Amina, Zara, Yasmin, Noor, Priya, Asha,
Meera, Anika, Sita, Mei, Lin, Yuki, Hana, Aiko, Sakura, Suki, Min, Ada, Ngozi, Zuri, Nia, Amara, Abena,
Imani, Bella, Stella, Violet, Hazel, Pearl, Iris, Fiona, Maeve, Bridget, Nancy, Wendy, Sally, Dora,
Flora, Martha, Helen, Laura, Sandra, Paula, Tess, June, May, April, Zoë, Penny, Millie, Tilly, Elsie,
Sarah, Emily, Charlotte, Isabella, Ava, Layla, Luna, Naomi, Ruth, Esther, Eliza, Beth, Jenny, Lisa
""")

BOYS = words("""
Tom, Ben, Max, Sam, Tim, Jack, Leo, Finn, Noah, Liam, Oscar, Hugo, Felix, Theo, Luke, Adam, Jacob, Peter,
Paul, John, James, Daniel, David, Oliver, Henry, George, Arthur, Charlie, Harry, Alfie, Billy, Bobby,
Joe, Jim, Fred, Ned, Ted, Will, Nick, Rob, Dan, Matt, Alex, Eric, Lars, Sven, Olaf, Emil, Anton, Karl,
Otto, Hans, Fritz, Ivan, Boris, Pavel, Marco, Luca, Mario, Pablo, Diego, Carlos, Juan, Pedro, José, Rafael,
Mateo, Andre, Pierre, Louis, René, Omar, Ali, Hassan, Karim, Tariq, Samir, Amir, Arjun, Ravi, Rohan, Vikram,
Kiran, Dev, Chen, Wei, Jun, Kenji, Hiro, Taro, Akira, Kofi, Kwame, Jabari, Tunde, Sipho, Milo, Rory,
Sean, Connor, Patrick, Simon, Toby, Jasper, Gus, Walter, Edgar, Victor, Ralph, Frank, Bruno, Jonas, Elias,
Michael, William, Lucas, Ethan, Mason, Logan, Robert, Thomas, Martin, Philip, Andrew, Mark, Steve, Kevin
""")

PET_NAMES = words("""
Pip, Fluff, Biscuit, Pepper, Whiskers, Coco, Rusty, Nibbles, Bramble, Patch, Snowy, Ginger, Misty, Bubbles,
Button, Hazelnut, Pickle, Sunny, Shadow, Tiny, Muffin, Cookie, Rex, Bingo, Lucky, Buddy, Spot, Dash, Scout,
Ziggy, Mango, Olive, Peanut, Sparky, Fern, Willow, Clover, Maple, Tuk, Bobo, Momo, Kiki, Lulu, Toto, Dot
""")

SURNAMES = words("""
Green, Brown, White, Black, Miller, Baker, Cook, Hill, Wood, Field, Stone, Brook, Young, King, Fisher,
Carter, Mason, Parker, Taylor, Cooper, Lane, Frost, Winter, Summers, Rivers, Bell, Fox, Swan, Bird, Rose
""")

CHILD_NOUNS = ["girl", "boy"]
CHILD_ADJECTIVES = words(
    "little, young, clever, kind, brave, shy, curious, cheerful, quiet, happy, small, "
    "friendly, funny, lonely, hungry, bright, sleepy"
)

ROLES = words("""
sailor, baker, farmer, teacher, king, queen, prince, princess, knight, wizard, witch, giant, dwarf, pirate,
captain, fisherman, shepherd, gardener, painter, musician, clown, doctor, nurse, pilot, astronaut, cook,
tailor, shoemaker, blacksmith, carpenter, miller, librarian, mailman, policeman, firefighter, soldier, monk,
merchant, inventor, scientist, man, woman, singer, dancer, poet, writer, hunter, woodcutter, beekeeper, barber,
clockmaker, potter, weaver, juggler, magician, explorer, traveler, bus driver, train driver, lighthouse keeper,
ferryman, mountain guide, bell ringer, street sweeper, shopkeeper, judge, mayor, engineer, student, artist,
photographer, detective, spy, emperor, fisherwoman, grandmother, grandfather, washerwoman, candle maker,
toy maker, stranger, hermit, minstrel, guard, servant, maid, cowboy, builder, plumber, mechanic, waiter
""")
FEMALE_ROLES = set(words("queen, princess, witch, woman, fisherwoman, grandmother, washerwoman, maid"))
MALE_ROLES = set(
    words(
        "king, prince, wizard, fisherman, mailman, policeman, man, ferryman, emperor, grandfather, "
        "monk, cowboy"
    )
)
ROLE_ADJECTIVES = words(
    "old, young, poor, rich, kind, wise, brave, tired, cheerful, clever, proud, quiet, lonely, "
    "busy, tall, funny, gentle, grumpy, honest, lazy, famous, strange"
)

ANIMALS = words("""
fox, rabbit, bear, mouse, cat, dog, wolf, owl, hedgehog, squirrel, frog, toad, duck, goose, hen, rooster, pig,
cow, horse, pony, donkey, goat, sheep, lamb, lion, tiger, elephant, giraffe, zebra, monkey, parrot, penguin,
polar bear, seal, otter, beaver, badger, deer, moose, raccoon, skunk, kangaroo, koala, panda, camel, hippo, rhino,
crocodile, turtle, snail, ant, bee, ladybug, butterfly, spider, cricket, grasshopper, worm, robin, sparrow,
crow, raven, swan, stork, eagle, seagull, pigeon, peacock, hamster, guinea pig, mole, bat, lizard, snake, kitten,
puppy, foal, calf, piglet, duckling, chick, bunny, caterpillar, firefly, llama, ostrich, flamingo, pelican
""")
ANIMAL_ADJECTIVES = words(
    "little, small, young, old, brown, gray, white, black, hungry, clever, shy, brave, kind, "
    "lazy, proud, curious, lonely, happy, tiny, big, sleepy, funny, silly, gentle, friendly"
)

SWIMMERS = words(
    "fish, whale, dolphin, octopus, crab, seahorse, starfish, jellyfish, sea turtle, shark, goldfish, "
    "lobster, squid, eel, mermaid"
)

CREATURES = words("""
dragon, robot, unicorn, fairy, elf, troll, ghost, gnome, monster, snowman, goblin, phoenix, yeti, genie, alien,
angel, goblin, ogre, vampire, dinosaur, mammoth, puppet, scarecrow, gingerbread man
""")
CREATURE_ADJECTIVES = words(
    "little, small, young, old, lonely, friendly, shy, green, silver, blue, kind, clumsy, "
    "gentle, curious, sleepy, big, sad, funny, brave, tiny"
)

THINGS = words("""
cloud, star, tree, snowflake, raindrop, leaf, flower, train, boat, car, bus, truck, tractor, plane, rocket,
teapot, spoon, clock, lamp, candle, shoe, button, pencil, book, chair, table, toy soldier, teddy bear, doll,
kite, balloon, drum, bell, key, umbrella, broom, kettle, pumpkin, apple, carrot, potato, pebble, stone, wave,
sunflower, mushroom, acorn, pine tree, lighthouse, windmill, bicycle, sock, mitten, hat, cup, paper boat, crayon,
cactus, pancake, cookie, computer, phone, guitar, piano, violin, statue, ship, pillow, blanket, island, moon
""")

RELATIVES = {  # who "my ..." can be, and the pronoun
    "grandmother": "she",
    "grandfather": "he",
    "mother": "she",
    "father": "he",
    "sister": "she",
    "brother": "he",
    "aunt": "she",
    "uncle": "he",
    "cousin": "he",
    "neighbor": "she",
    "teacher": "she",
    "best friend": "he",
}
ELDERS_OF_YOUNG = {
    "mother": "she",
    "father": "he",
    "grandmother": "she",
    "grandfather": "he",
    "aunt": "she",
    "uncle": "he",
    "big sister": "she",
    "big brother": "he",
}
ELDERS_OF_GROWN = {
    "neighbor": "she",
    "best friend": "he",
    "brother": "he",
    "sister": "she",
    "old teacher": "she",
    "cousin": "he",
}
SMALL_CREATURES = words("""
kitten, puppy, bird, baby bird, mouse, rabbit, hedgehog, frog, duckling, butterfly, squirrel, turtle, lamb, bee,
owl, sparrow, chick, bat, fawn, ladybug, gosling, hamster, lizard, mole, bunny
""")
SMALL_ADJECTIVES = words("tiny, small, little, gray, brown, white, wet, frightened, black, young")
PETS = words("dog, cat, puppy, kitten, rabbit, parrot, pony, goat, hamster, turtle, horse, duck")
GROUP_NOUNS = {  # a pair without names, and what each of the pair is
    "brothers": "he",
    "sisters": "she",
    "friends": "",
    "mice": "",
    "rabbits": "",
    "foxes": "",
    "bears": "",
    "children": "",
    "frogs": "",
    "ducks": "",
    "neighbors": "",
    "kittens": "",
    "birds": "",
    "sailors": "",
    "cousins": "",
    "squirrels": "",
    "owls": "",
    "robots": "",
    "twins": "",
}

# --------------------------------------------------------------- things and places

COLORS = words("red, blue, green, yellow, white, black, golden, silver, brown, pink, purple, orange")
OBJECT_ADJECTIVES = COLORS + words("""
old, new, small, little, big, round, shiny, soft, wooden, pretty, beautiful, tiny, red, blue, green, yellow, strange,
warm, bright, striped, special, lovely, heavy, long
""")
OBJECTS = words("""
kite, ball, hat, scarf, book, ring, key, doll, drum, flute, lamp, coin, cup, basket, umbrella, bell, box, boat,
toy train, teddy bear, watch, necklace, mitten, shoe, boot, coat, blanket, pillow, bag, backpack, map, pencil,
notebook, paintbrush, whistle, mirror, lantern, spoon, bowl, teapot, button, feather, shell, stone, marble, puzzle,
balloon, bicycle, sled, scooter, toy car, toy boat, toy robot, music box, guitar, violin, trumpet, compass,
telescope, hammer, shovel, bucket, broom, ladder, rope, candle, bottle, jar, letter, picture, photo, crown, wand,
cloak, sword, shield, fishing rod, net, camera, clock, radio, phone, diary, pen, ribbon, bracelet, jacket, sweater,
cap, glove, sock, paper plane, wooden horse, rubber duck, snow globe, pocketknife, flashlight, magnet, chess set
""")
SEA_OBJECTS = words(
    "shell, pearl, stone, ring, coin, bottle, spoon, bell, mirror, comb, button, key, necklace, box"
)

PLACES = lines("""
in forest
in garden
in park
by river
by lake
on hill
on beach
in village
in town
in market
in kitchen
in attic
in barn
in meadow
in field
in castle
in library
in school yard
in old mill
at harbor
in valley
on mountain
in desert
in jungle
in cave
on island
in shop
at bakery
at train station
in museum
in zoo
on bridge
in tower
in cellar
in orchard
at farm
in city
by pond
by waterfall
in woods
on road
in square
in workshop
at playground
by well
on farm
in backyard
in theater
in church
near lighthouse
at airport
at bus stop
in hospital
in palace
under bridge
behind house
near railway
in vegetable garden
in street
""")
SEA_PLACES = lines("""
in sea
near coral reef
by shipwreck
in bay
near island
in deep water
in cave under the sea
by rocks
near harbor
among seaweed
""")
PLACE_ADJECTIVES = words("old, quiet, big, little, green, lovely")
SETTLEMENTS = lines("""
a small village
a quiet town
a little house
a big city
a tall tower
a village by the sea
a small house near the forest
a cottage at the edge of the woods
a town in the mountains
a country far away
a small house on a hill
a village by the river
a big house with a green door
a faraway kingdom
a land of snow and ice
a valley full of flowers
a house at the end of the road
a small town by the lake
an old castle
""")
DESTINATIONS = lines("""
the sea
the top of the mountain
the big city
the other side of the forest
the end of the rainbow
the great waterfall
the island in the lake
the king's castle
the moon
the North Pole
the big market
the desert
the river behind the hills
the old lighthouse
the snow in the north
the valley of flowers
""")

FOODS = lines("""
a cake
an apple pie
a loaf of bread
some soup
some berries
some cookies
some pancakes
a pizza
some honey
some cheese
some apples
a sandwich
some nuts
some rice
a pumpkin pie
some noodles
a bowl of porridge
some plums
some cherries
a pot of stew
some corn
some strawberries
some muffins
a chocolate cake
some jam
some carrots
a big salad
some waffles
some pears
some grapes
a basket of eggs
some lemonade
some hot chocolate
some tea and bread
some roasted potatoes
some peaches
some dumplings
a fruit cake
some gingerbread
some oranges
""")
BAKED = lines("""
a cake
an apple pie
a loaf of bread
some cookies
some pancakes
a pizza
a pumpkin pie
some muffins
a chocolate cake
some waffles
some gingerbread
a fruit cake
some soup
a pot of stew
some dumplings
a plum tart
""")

# --------------------------------------------------------------- what people do

# The base form; train_model.py makes "looked at ..." and "looking at ..." of it.
ACTIVITIES = lines("""
look at the sea
look out of the window
look up at the sky
look at the stars
walk along the beach
walk in the park
walk through the forest
walk to the market
walk down the road
walk home from school
walk by the river
read a book under a tree
read an old book
read a letter
sit on a bench in the park
sit by the fire
sit by the window
sit under a big tree
sit at the kitchen table
sit on the steps of the house
play in the garden
play in the yard
play with a ball
play by the river
play in the snow
play near the old bridge
pick flowers in the meadow
pick apples in the garden
pick berries in the woods
sweep the floor
wash the dishes
water the flowers
clean the house
clean the windows
fix the roof
paint a picture
paint the fence
draw a picture
sing a song
sing in the garden
dance in the kitchen
dance in the rain
bake bread
cook soup
drink a cup of tea
eat breakfast
eat lunch under a tree
count the stars
count the clouds
count the birds on the roof
watch the clouds
watch the birds
watch the boats
watch the rain
watch the sun go down
watch the snow fall
listen to the rain
listen to the birds
listen to the wind
listen to music
look for shells on the beach
look for mushrooms in the forest
look for something to eat
gather wood in the forest
collect pretty stones
collect leaves
climb a tree
climb the hill
climb the stairs of the old tower
ride a bicycle
ride along the road
sleep under a tree
sleep in a warm bed
rest in the shade
rest by the lake
wait for the bus
wait for the train
wait at the door
wait for spring
work in the garden
work in the field
work all day
build a house of blocks
build a wall of stones
build a castle of sand
dig in the garden
dig a hole
plant carrots
feed the ducks
feed the chickens
feed the birds
fish in the lake
swim in the lake
swim in the river
row a boat on the lake
sail on the lake
run through the grass
run down the hill
jump over puddles
jump over a little stream
throw stones into the water
fly a kite
make a paper boat
make a crown of flowers
make dinner
write a letter
write in a diary
tell stories
tell jokes
hum a little tune
think about the summer
dream about faraway places
pack a bag
open the window
close the door
light a candle
light the lamp
carry water from the well
carry a heavy basket
sell apples at the market
buy bread at the market
visit a friend
travel through the land
travel by train
walk in the moonlight
play the flute
play the piano
play the drum
practice the violin
knit a scarf
sew a dress
mend a net
do a puzzle
do the homework
play football with the others
take a walk
take a nap
go for a walk
go to school
go to the lake
drive to the city
search for treasure
explore the old house
explore the cave
chase butterflies
catch snowflakes
roll down the hill
splash in the puddles
feel the warm sun
smell the flowers
""")
SEA_ACTIVITIES = lines("""
swim in the warm water
swim near the surface
swim around the rocks
look for shells
look for food
watch the waves
watch the boats
play with the bubbles
play in the waves
follow a boat
rest on the sand
sleep under a rock
sing to the waves
count the bubbles
dance in the water
explore the shipwreck
chase the little shrimps
listen to the waves
dream about the deep water
look at the light above
""")
# Not what anybody "loved to do"; and what does not go with every time of day and every weather.
DULL_ACTIVITIES = (
    r"wait|close|open the|pack|walk home|eat breakfast|carry|look out|look for something|homework|write a letter|read a letter|"
    r"light|take a nap|sit on the steps|think"
)
SKY_ACTIVITIES = (
    r"star|sun|snow|rain|moon|puddle|dream|sleep|breakfast|lunch|dinner|warm bed|shade|school|cloud"
)
IRREGULAR_VERBS = {  # base: past
    "sit": "sat",
    "read": "read",
    "sweep": "swept",
    "draw": "drew",
    "sing": "sang",
    "drink": "drank",
    "eat": "ate",
    "ride": "rode",
    "sleep": "slept",
    "build": "built",
    "dig": "dug",
    "feed": "fed",
    "swim": "swam",
    "run": "ran",
    "throw": "threw",
    "fly": "flew",
    "make": "made",
    "write": "wrote",
    "tell": "told",
    "think": "thought",
    "light": "lit",
    "sell": "sold",
    "buy": "bought",
    "sew": "sewed",
    "do": "did",
    "take": "took",
    "go": "went",
    "drive": "drove",
    "catch": "caught",
    "feel": "felt",
    "knit": "knitted",
    "hum": "hummed",
}
DOUBLING_VERBS = set(words("sit, dig, swim, run, knit, hum"))

SKILLS = lines("""
swim
sing
dance
ride a bicycle
play the flute
play the piano
play the guitar
play the drum
play the violin
read
write
draw
whistle
juggle
skate
ski
paint
cook
sew
climb
fish
count to a hundred
tie a knot
catch a ball
""")
FEARS = lines("""
the dark
deep water
thunder
high places
loud noises
the old house
strangers
the big dog next door
the forest at night
spiders
the wind
the cellar
bats
""")
BUILDS = lines("""
a tree house
a boat
a bridge
a sled
a birdhouse
a kite
a castle of sand
a little house
a snowman
a raft
a rocket
a swing
a wagon
a tower of stones
a scarecrow
a bench
a robot
a flying machine
""")
SEEDS = lines("""
a sunflower
an apple tree
a rose
a pumpkin
a cherry tree
a bean
a pear tree
a carrot
a tulip
a melon
a tomato plant
a lemon tree
""")
GAMES = words(
    "hide and seek, tag, cards, a guessing game, pirates, chess, a game with a ball, a counting game, "
    "kings and queens, explorers, a game of marbles"
)
GIFTS = lines("""
a paper crown
a picture
a little poem
a wooden spoon
a scarf
a necklace of shells
a crown of flowers
a birdhouse
a card
a paper star
a candle
a small basket
a bunch of wild flowers
a wooden bird
a pillow
a bracelet
""")
FINDS = words(
    "box, chest, bottle, bag, jar, suitcase, basket, trunk, tin, purse, sack, case, wooden box, clay pot, barrel"
)
INSIDE = lines("""
an old letter
a golden coin
a map of the hills
a tiny silver bell
a photo of a ship
a book full of stories
a bag of seeds
a small wooden bird
a key with a red ribbon
a shiny blue stone
a music box
a ring
a row of glass marbles
a warm scarf
a picture of the village long ago
""")
JOB_TROUBLES = lines("""
the old bell would not ring
the well was dry
the bridge was broken
the big clock stopped
the boat had a hole in it
the oven would not get warm
the mill stopped turning
there was no light in the lighthouse
the gate would not open
the roof began to leak
the road was full of snow
the wagon lost a wheel
the lamp in the street went out
the fountain had no water
a big stone blocked the road
""")
MYSTERIES = lines("""
a strange sound came from the attic
something was scratching at the door
a little light was moving in the garden
there were tiny footprints on the kitchen floor
a cookie was missing from the plate every morning
somebody was singing behind the wall
the curtain moved all by itself
a knocking sound came from the roof
there was a strange shadow on the wall
something was crying in the bushes
there was a noise under the bed
something was moving in the big box
""")
EVENTS = lines("""
it started to rain
the wind began to blow
the lights went out
the phone rang
a loud noise came from outside
somebody knocked at the door
a bell rang far away
the sun came out
a leaf fell from the tree
a big shadow passed by
it began to snow
a bird landed nearby
the clock struck twelve
a voice called from the road
a cold wind came from the north
the ground began to shake
""")
WAKE_SCENES = lines("""
the house was very quiet
the sun was already high in the sky
everything outside was white with snow
it was still dark
the rain was falling on the roof
a bird was singing at the window
there was a letter under the door
the whole house smelled of fresh bread
the bed was cold
something felt different
""")
TIMES = lines("""
sunny morning
cold morning
bright day
rainy day
rainy afternoon
warm evening
cold evening
dark night
quiet night
winter morning
summer day
summer evening
spring morning
autumn day
windy day
snowy day
foggy morning
Sunday morning
Saturday
day in May
hot afternoon
stormy night
beautiful day
""")
SKIES = lines("""
a cold winter night
a warm summer day
a beautiful morning
a dark and stormy night
a quiet evening
a rainy day
a windy afternoon
the first day of spring
the last day of summer
a bright and sunny day
early in the morning
late in the evening
almost midnight
a foggy morning
the night before the big feast
the first day of school
snowing
raining
very hot
very cold
Monday
the coldest day of the year
a day like any other
""")
SETTINGS = lines("""
The sea was calm.
The snow fell softly on the roofs.
The moon was bright and round.
The market was full of people.
The house at the end of the road was empty.
The rain was falling on the roof.
The sun was shining and the birds were singing.
The leaves were red and gold.
The wind was strong.
The streets of the town were quiet.
The train was late.
The stars were shining over the hills.
The old house on the hill was dark.
The river was wide and slow.
The forest was silent.
The fire was warm.
The kitchen smelled of cinnamon.
The school bell rang.
The first flowers were growing in the garden.
The ship was ready to leave.
The bakery smelled wonderful.
There was a garden behind the old wall.
There was a small boat on the lake.
There was a light in the window of the old house.
The night was dark and cold.
The water in the lake was clear.
The mountain was covered with snow.
The old clock in the hall struck nine.
Winter came early that year.
Spring was late that year.
Nobody in the village was awake.
Nothing ever happened in the little town.
The road to the city was long.
The city was big and loud.
The clouds were dark.
The bus was full.
The grass was wet.
Everyone in the village was getting ready for the feast.
""")
MOODS = words("""
sad, lonely, bored, happy, tired, hungry, worried, excited, cold, nervous, sleepy, angry, curious, unhappy, quiet, proud, cross, lost
""")
ALONE_THOUGHTS = lines("""
What a day this is!
Something is going to happen today,
I wonder what is behind that hill,
I am hungry,
It is so quiet here,
Today will be a good day,
Where is everybody?
I need a rest,
What shall I do today?
It is time to go,
Look at that!
I have an idea!
I am so bored!
""")
LIST_HIDE = lines("""
under a bush
behind a big stone
in the tall grass
under an old bench
in a bird's nest
behind a box
between two stones
on the branch of a tree
next to the fence
in a little hole
under some leaves
on top of a wall
in an empty barrel
""")
HAPPY = words("happy, very happy, so happy, full of joy, glad, very glad, proud and happy")
SAD = words("sad, very sad, so sad, unhappy, very unhappy, upset, worried")
WHEN_GENERAL = lines("""
One day,
One day,
One day,
But one day,
Then, one day,
One morning,
One evening,
One summer day,
One cold day,
One afternoon,
One night,
""")
WHEN_MOMENT = [
    "Soon",
    "Suddenly,",
    "Then",
    "A little later,",
    "Just then,",
    "After a while,",
    "That day,",
    "Later that day,",
    "",
    "",
]
LAND_WORDS = (
    r"settlement|forest|mountain|door|window|coat|village|town|school|street|tree|bed\b|garden|road|house|hand|walk|"
    r"ran\b|knock|fire|breakfast|dinner|lunch|home|feast|summer|winter|wind|market|hug|sat\b|sitting|moon|food|"
    r"event|wake|time|sky|setting|hide|settl|box|leg|foot|tears|dance"
)
QUOTE_VERBS = set(words("said, asked, cried, whispered, shouted, answered, called, laughed, thought"))

THIEVES = words("wolf, fox, bear, troll, giant, raven, tiger, rat, cat, crocodile")
LIVING = lines("""
in the forest
in a forest
by the river
by the sea
on a hill
on a farm
in the mountains
in a castle
in a cave
near the sea
near the lake
at the edge of the woods
in a village
in the city
on an island
in a small house
in an old house
in a green valley
in the desert
in the jungle
by a pond
in a garden
in a tower
behind the hills
in the north
under a big tree
""")
SEA_LIVING = [
    "in the sea",
    "in the deep blue sea",
    "near a coral reef",
    "in a quiet bay",
    "in an old shipwreck",
]
LISTS = {
    "live": LIVING,
    "sealive": SEA_LIVING,
    "pet": PET_NAMES,
    "event": EVENTS,
    "wake": WAKE_SCENES,
    "time": TIMES,
    "sky": SKIES,
    "setting": SETTINGS,
    "mood": MOODS,
    "hide": LIST_HIDE,
    "happy": HAPPY,
    "sad": SAD,
    "settlement": SETTLEMENTS,
    "thought": ALONE_THOUGHTS,
    "game": GAMES,
}
KEPT_LISTS = {  # picked once for each story: noun phrases with their article
    "food": FOODS,
    "baked": BAKED,
    "seed": SEEDS,
    "build": BUILDS,
    "gift": GIFTS,
    "inside": INSIDE,
}
KEPT_WORDS = {  # picked once for each story: used as they stand
    "skill": SKILLS,
    "fear": FEARS,
    "dest": DESTINATIONS,
    "trouble": JOB_TROUBLES,
    "mystery": MYSTERIES,
    "find": FINDS,
    "thief": THIEVES,
}

# --------------------------------------------------------------- openings

OPENINGS = sections("""
## classic
Once upon a time, there {h.was} {h.a}.
Once upon a time, there {h.was} {h.a} who lived {~live}.
Once upon a time, there {h.was} {h.a} who loved to {~do}.
Once upon a time, {h.a} lived {~live}.
Once upon a time {h.a} lived in {~settlement}.
Once upon a time, in {~settlement}, there lived {h.a}.
Once upon a time, in a [land|country|kingdom|place] far away, there lived {h.a}.
Once there {h.was} {h.a} who liked to {~do}.
There once {h.was} {h.a} who lived {~live}.
Long ago, {h.a} lived in {~settlement}.
Long, long ago, there {h.was} {h.a} who always wanted to {~do}.
In {~settlement} there lived {h.a}.
In {~settlement}, there {h.was} {h.a}.
Far away, {~live}, there lived {h.a}.
Deep in the forest, there lived {h.a}.
Many years ago, there {h.was} {h.a}.
Not far from here, {~live}, there lived {h.a}.
There {h.was} {h.a} who lived in {~settlement}.
There {h.was} once {h.a}.
There {h.was} {h.a} who liked to {~do}.
This is a story about {h.a}.
This is the story of {h.a} who lived in {~settlement}.
High up in the mountains lived {h.a}.
Near the sea, in {~settlement}, lived {h.a}.
## general
{h} lived in {~settlement}.
{h} lived {~live}.
{h} lived [alone|happily|quietly] in {~settlement}.
{h} always wanted to {~do}.
{h} loved to {~do}.
{h} liked to {~do} and to {~do2}.
{h} {h.was} very good at many things, but {h.he} did not like to {~do}.
[Every day|Every morning|Every evening|Every summer|Every Sunday|Each morning|Each night], {h} {~did}.
Every [day|morning|evening] {h} {~did} and {~did2}.
Everyone [in the village|in the town|at school|in the street] knew {h.o}.
Nobody knew where {h} came from.
{h} had a [big|little|wonderful|secret] dream.
{h} had a secret.
{h} worked hard every day.
{h} had no [friends|home|money|shoes|garden].
{h} [loved|liked] [winter|summer|the rain|the snow|the sea|the stars|stories|music|animals|flowers] more than anything.
1> {h} [was|had always been] a little [shy|clumsy|lazy|wild|different].
3> My [friend|neighbor|grandmother] once told me about {h.a}.
3> Let me tell you about {h.a}.
3> I [know|once knew] {h.a}.
3> Have you ever heard of {h.a}?
3> In our [town|village|street] there lived {h.a}.
## moment
{h} {~did}.
{h} {~did} and {~did2}.
{h} {h.was} {~doing}.
{h} {h.was} {~doing} when {~event}.
{h} {h.was} {~doing} and {~doing2}.
{h} {~did}, and {~event}.
One {~time}, {h} {~did}.
One {~time} {h} {h.was} {~doing}.
One {~time}, {h} {h.was} {~doing} when {~event}.
One {~time}, {h} went {place.to} to {~do}.
One {~time} in [January|April|June|October|winter|summer|spring], {h} {~did}.
On a {~time}, {h} {~did}.
On a {~time}, {h} {h.was} {~doing}.
It was {~sky}. {h} {h.was} {~doing}.
It was {~sky}, and {h} {~did}.
It was {~sky} when {h} {~did}.
It was {~sky} when {h} woke up.
{~setting} {h} {~did}.
{~setting} {h} {h.was} {~doing}.
{~setting} {h} {h.was} {~mood}.
{h} woke up [early|late|in the middle of the night|with a smile|before the sun].
When {h} woke up, {~wake}.
When {h} opened {h.his} eyes, {~wake}.
While {h} {h.was} {~doing}, {~event}.
As {h} {~did}, {~event}.
After [breakfast|lunch|dinner|school|a long day|the storm], {h} {~did}.
Before [breakfast|dinner|sunrise|bedtime], {h} {~did}.
{h} could not sleep.
{h} {h.was} {~mood}.
{h} {h.was} very {~mood}.
{h} [was not|had never been] so {~mood} before.
{h} felt {~mood}.
{h} {h.was} {~mood} and {~mood2}.
{h} {h.was} {~mood} because {~event}.
{h} wanted to {~do}.
{h} wanted to {~do}, but {~event}.
{h} stood {place.in} and looked around.
{h} came home and found that {~wake}.
{h} lost {h.his} {obj8} [in the storm|in the street|on the way home|in the snow|somewhere].
{h} found {obj8.a} {place.in}.
{h} bought {obj8.a}[ and {obj9.a}|].
{h} [dropped|hid|forgot|lost] {obj8.a} {place.in}.
{h} wanted {obj8.a}[ more than anything|].
{h} did not want to {~do} [anymore|today|again].
{h} had never seen {obj8.a} [before|like that].
{h} had never [seen the sea|been to the city|seen snow|been so far from home|slept in the forest].
{h} {h.was} angry with {p.a}.
{h} missed the [bus|train|boat].
{h} missed {p.a}.
{h} told {p.a} about {h.his} dream.
{h} asked {p.a} for {obj8.a}.
{h} tried to {~do}, but {~event}.
{h} got lost {place.in}.
{h} [fell asleep|woke up] {place.in}.
{h} [landed|arrived|appeared|waited|stopped|stood] {place.in}.
{h} [ran away|came back|got up|sat down|fell down|went out] and {~did}.
{h} knew that something was wrong.
{h} [smiled|laughed|cried|sighed|nodded] and {~did}.
{h} built {build.a} {place.in}.
{h} made {gift.a} for {p.a}.
{h} [cooked|made|bought|ate] {food.a}.
{h} smelled {food.a}.
{h} [dreamed of|thought about|talked about] {fear}.
{h} {h.was} [looking for|dreaming of|thinking about] {obj8.a}.
{h} saw {obj8.a} {place.in}.
{h} saw {obj8.a} and {~did}.
{h} worked in a [bakery|school|shop|hospital|museum|factory|library|garden].
At [noon|midnight|sunset|school|home|night], {h} {~did}.
On [Monday|Friday|Sunday|the first day of spring|the last day of school|the way home|the beach|a ship|a train], {h} {~did}.
On [Monday|Friday|Sunday|the first day of spring|the last day of school|the way home], {h} found {obj8.a}.
In the [morning|evening|afternoon|middle of the night], {h} {~did}.
There was {obj8.a} {place.in}. {h} looked at it and smiled.
There was a [loud noise|knock at the door|strange light|big storm]. {h} {h.was} {~doing}.
"[Come quickly|Help|Look|Wait|Stop|Hurry up|Listen]!" {h.shouted}.
"[Come here|Good morning|I am coming|Let us go]," {h.said}.
{h} went {place.to}.
{h} went {place.to} to {~do}.
{h} [walked|hurried|went] {place.to} because {h.he} wanted to {~do}.
{h} sat {place.in}.
{h} sat {place.in} and {~did}.
{h} [opened|closed] the [door|window|gate] and {~did}.
{h} heard a [strange|soft|loud] [sound|noise|voice].
{h} looked [up|around|out of the window] and smiled.
{h} [said goodbye|said good night|said nothing] and {~did}.
1> {h} put on {h.his} [coat|boots|hat] and went outside.
{h} [ran|hurried] home.
{h} was late [for school|for dinner|for work|again].
"{~thought}" {h.said}.
"{~thought}" {h.thought}.
"{~thought}" {h.said}. {h} {h.was} {~doing}.
The day began [well|badly|quietly] for {h.o}. {h} {~did}.
Nobody saw {h.o} when {h.he} {~did}.
Last [night|summer|winter|week|Sunday], {h} {~did}.
Yesterday, {h} {~did}.
Today was [a big|a special|an ordinary|a strange] day for {h.o}.
3> {h.a} {~did}.
3> {h.a} {h.was} {~doing}.
3> {h.a} sat {place.in}.
3> {h.a} came {place.to} one {~time}.
3> One {~time}, {h.a} {~did}.
3> One {~time}, {h.a} came to {~settlement}.
3> {~setting} {h.a} {~did}.
3> There {h.was} {h.a} {place.in}.
3> I [saw|met] {h.a} {place.in}.
## own
{h} had {obj.a}.
{h} had {obj.a}. [It was a gift from {p.a}.|{h} loved it very much.|{h} took it everywhere.|It was very old.]
{h} had {obj.a} that {h.he} loved very much.
{h} had {obj.a} and {obj2.a}, but {h.he} liked the {obj} best.
{h} [got|received] {obj.a} for {h.his} birthday.
{h} [bought|found] {obj.a} at the market.
{h} made {obj.a} all by {h.himself}.
{h} [loved|was very proud of] {h.his} {obj.n}.
{h.s} favorite thing was {obj.a}.
The best thing {h} had was {obj.a}.
{p} gave {h.n} {obj.a}.
Once upon a time, there {h.was} {h.a} who had {obj.a}.
There once {h.was} {h.a} who owned {obj.a}.
In {~settlement} there lived {h.a} who had {obj.a}.
{h} and {h.his} {obj.n} were always together.
3> {h.a} had {obj.a}.
## friend
{both} were [good|best|old] friends.
{both} were [playing|sitting|walking|working|resting] {place.in}.
{h} {h.was} [playing|sitting|walking|working] {place.in} with {f.a}.
1> {h} had a [good|dear] friend. ^{f.a} lived next door.
{h} went {place.to} with {f.a}.
{both} did everything together.
{both} lived {~live}.
Once upon a time, there {h.was} {h.a} who had a friend. The friend was {f.a}.
Once upon a time, {both.a} lived {~live}.
One {~time}, {both} met {place.in}.
One {~time}, {h} visited {f.a}.
Long ago, {both.a} lived in {~settlement}.
{~setting} {both} were sitting {place.in}.
It was {~sky}. {both} were together.
## found
{obj.A} lay {place.in}. Nobody knew who had left it there.
There was {obj.a} {place.in}. [It was very old.|Nobody ever looked at it.|It was covered with dust.]
{place.In}, there was {obj.a}.
{place.in}, there was {obj.a}. [Nobody knew where it came from.|It had been there for a long time.]
The {obj.n} had been {place.in} for [many years|a long time|a hundred years].
{obj.the} was very old, and nobody wanted it.
""")

INTRO = lines("""
{h} loved to {~do}.
{h} liked to {~do} and to {~do2}.
1> {h} was [kind|friendly|nice] to everyone.
{h} lived there with {p.a}.
[Every day|Every morning|Every evening], {h} {~did}.
Everybody liked {h.o}[ very much|].
{h} {h.was} [happy there|very curious|never bored|not very rich, but happy].
{h} had a [warm|little|cozy] home with a [red|blue|green] [door|roof].
{h} had many dreams.
{h} worked hard [all day|every day], and in the evening {h.he} {~did}.
3> Everyone called {h.o} [the best neighbor in the world|a good friend|a dreamer].
""")

# --------------------------------------------------------------- plots

# name: (opening kinds, who may be the hero, beats). A beat with "?" is left out at times.
# Heroes: c child, r grown-up with a role, a animal, k creature, t thing, i narrator, g two of them, m "my ...",
# s one who lives in the sea.
PLOTS = {
    "lost": ("own", "crakigms", "gone upset search? meet ask found thanks keep"),
    "broken": ("own", "crakigm", "break upset showelder mend joy helplesson?"),
    "share": ("own", "crakigm", "wants refuse think? gives sharejoy sharelesson"),
    "rescue": ("any", "crakigm", "findsmall trouble free? care thankful better kindlesson?"),
    "fear": ("any", "crakigm", "afraid needcourage talk? dare braveend bravelesson?"),
    "newfriend": ("any", "crakimst", "lonely wish? meetnew talknew play friends"),
    "storm": ("any", "crakigm", "walkout weather lostway light host warm home"),
    "discover": ("any found", "crakigm", "sees look? inside tellit goodend"),
    "truth": ("any", "cakigm", "accident hide guilt tell forgive honest"),
    "race": ("friend", "crakim", "raceidea racestart racetrouble racechoice raceend friendlesson?"),
    "journey": ("any", "crakigmt", "wishgo pack way traveler? arrive see homeagain"),
    "bake": ("any", "crakigm", "wantbake mix fail help again eat"),
    "build": ("any", "crakigm", "wantbuild gather tryfail buildhelp ready goodend"),
    "garden": ("any", "crakigm", "seed waitgrow nothing patience grown harvest"),
    "surprise": ("any", "crakim", "birthday forgot walksad surprise party thankyou"),
    "trick": ("any", "crakgm", "hasfood thief trickidea tricked sorrythief"),
    "rainy": ("any", "caikgm", "rain bored idea play2 sun"),
    "gift": ("any", "crakigm", "nogift thinkgift makegift givegift giftjoy"),
    "wish": ("any", "crakigm", "magic offer wishmade toomuch undo content"),
    "sick": ("friend", "crakim", "ill worry bring cheer well"),
    "sleep": ("any", "crakigmt", "awake tries elder song asleep"),
    "mystery": ("any", "crakigm", "strange scared goes itsmall laugh"),
    "work": ("any", "rcakigm", "jobtrouble trystill clever fixed cheers lesson?"),
    "quarrel": ("friend", "crakim", "quarrel away miss sorry together"),
    "learn": ("any", "crakigm", "wantskill badtry advice practice can proud"),
    "visit": ("any", "crakigm", "trip there seethings eatthere tiredhome"),
    "letter": ("any", "crakigm", "gets reads sets meetwriter together2"),
    "kindness": ("any", "crakigm", "beggar gives2 later repaid lesson2"),
    "snow": ("any", "caigkm", "snowing snowplay snowman cold inside2"),
    "music": ("any", "crakigm", "plays crowd shyness playagain clap"),
    "star": ("any", "crakigmt", "fallstar finds talkstar lift shine"),
    "giantfear": ("any", "crakigm", "rumor goes2 meetsbig truthbig befriends"),
    "helper": ("any", "crakigmt", "nowork offers laughs chance saves respected"),
    "count": ("any", "cakigm", "hassome getsmore counts sharecount"),
}

BEATS = sections("""
## gone
{when} {obj.the} was gone.
{when} {h} could not find {obj.the}.
{when} {h} looked for {obj.the}, but it was not there.
{when} {h} lost {obj.the} {place.in}.
{when} {h} put {obj.the} down for a moment, and then it was gone.
{when} the wind blew hard, and {h} lost {obj.the}.
{when} {h} came home and saw that {obj.the} was missing.
{when} {obj.the} fell out of {h.his} bag, and {h} did not notice it.
## upset
{h} {h.was} [very|so] sad.
"Oh no! Where is my {obj}?" {h.cried}.
{h} sat down and cried.
{h} {h.was} so [sad|upset] that {h.he} could not [eat|sleep|speak].
1> A tear ran down {h.his} [cheek|face].
"What shall I do now?" {h.asked}.
{h} did not know what to do.
## search
{h} looked [everywhere|high and low], but {h.he} could not find it.
{h} looked under the bed, behind the door and {place2.in}. It was not there.
{h} searched {place2.in} [all morning|for hours|until evening].
First {h} looked {place2.in}. Then {h.he} looked {place3.in}. [Nothing!|It was in neither place.]
{h} asked everyone {place2.in}, but nobody had seen it.
## meet
Then {h} met {f.a}.
On the way, {h} met {f.a}.
{place4.in}, {h} met {f.a}.
Just then, {f.a} came along.
{f.a} was sitting {place4.in}.
{f.a} saw {h.o} and stopped.
A little later, {f.a} came down the road.
## ask
"Why are you so sad?" {f.asked}. "I lost my {obj}," {h.said}.
"What are you looking for?" {f.asked}. "I am looking for my {obj}," {h.answered}.
"Have you seen {obj.a}?" {h.asked}. "No, but I will help you look for it," {f.said}.
"Please help me," {h.said}. "My {obj} is gone." ^{f} nodded. "Of course," {f.said}.
{h} told {f.o} about {obj.the}. "Let us look together," {f.said}.
"Do not cry," {f.said}. "Two can search better than one."
## found
Together {hf.they} looked again. At last, {hf.they} found {obj.the} {~hide}.
{f} looked carefully. "Is this your {obj}?" {f.he} asked. It was {~hide}!
{hf.They} looked and looked. Then {f} pointed to something {obj.color}. It was {obj.the}!
{f} looked {~hide}, and there was {obj.the}!
{hf.They} walked back {place5.to}. There it was, {~hide}!
Suddenly, {h} saw something {~hide}. It was {obj.the}!
## thanks
"Thank you so much!" {h.said}.
"Thank you, my friend!" {h.cried}, and {h.he} gave {f.o} a big hug.
{h} {h.was} {~happy} and thanked {f.n} many times.
{h} smiled and said, "You are a true friend."
"You found it!" {h.cried}. ^{h} danced with joy.
{h} gave {f.n} {food.a} to say thank you.
## keep
From that day on, {h} took good care of {obj.the}.
After that, {h} always kept {obj.the} in a safe place.
{h} never lost {obj.the} again.
{h} went home with {obj.the}, and {hf.they} stayed friends forever.
That night, {h} slept with {obj.the} next to the bed.
{h} went home {~happy}.
## break
{when} {h} fell, and {obj.the} broke.
{when} {obj.the} fell to the ground and broke.
{when} {h} dropped {obj.the}, and it broke [into two pieces|in the middle].
{when} {h} {h.was} not careful, and {obj.the} broke.
{when} {b.a} jumped on {obj.the}, and it broke.
{when} {h} sat down on {obj.the}. Crack! It was broken.
## showelder
{h} took the pieces to {p.n}.
{h} showed it to {p.n}. "Can you fix it?" {h.he} asked.
{p} heard {h.o} and came quickly. "What is wrong?" {p.he} asked. "My {obj} is broken," {h.said}.
{h} ran to {p.n}. "Look what happened," {h.he} said.
{p} looked at the {obj}. "Do not worry," {p.he} said. "We can fix it."
## mend
{p} took some [glue|string|strong thread|tape], and together {ha.they} worked [all evening|for an hour|very carefully].
First {p} put the pieces together. Then {h} held them until they were strong again.
{ha.They} worked side by side at the table. Slowly, the {obj} became whole again.
{p} showed {h.o} how to mend it. It took a long time, but {h} did not give up.
{ha.They} found a [little|small] [nail|piece of wood|piece of wire] and fixed it.
## joy
Soon the {obj} was as good as new. {h} {h.was} {~happy}.
"It is even better than before!" {h.said}.
When the work was done, {h} laughed and clapped {h.his} hands.
"Thank you for your help," {h.said}. ^{p} smiled.
{h} could still see a small line on the {obj}, but {h.he} liked it even more now.
## lesson
{h} never forgot that day.
{h} remembered it for a long time.
That day, {h} learned something important.
## helplesson
{h} learned that it is good to ask for help.
From that day on, {h} {h.was} more careful.
And that is how {h} learned to ask for help.
{h} never forgot who had helped {h.o}.
## kindlesson
{h} learned that a little kindness goes a long way.
From that day on, {h} {h.was} kind to all animals.
It is good to help those who are small.
{h} never forgot the {b.noun}.
## bravelesson
{h} learned that it is brave to try.
From that day on, {h} {h.was} a little braver.
{h} never forgot that day.
Everybody is afraid sometimes, but nobody has to be afraid forever.
## friendlesson
{h} learned that good friends help each other.
A friend is worth more than a prize.
{hf.They} never forgot that race.
## sharelesson
{h} learned that sharing makes everyone happy.
From that day on, {h} liked to share.
And that is how {h} learned to share.
{h} never forgot that day.
Things are more fun when you share them.
## wants
{when} {f.a} saw {obj.the}. "May I [hold|have|see] it?" {f.he} asked.
{when} {f.a} came by. "What a lovely {obj}!" {f.he} said. "Can I [try|borrow] it?"
{when} {h} met {f.a}, who had nothing at all. ^{f} looked at {obj.the} [for a long time|with big eyes].
{when} {f.a} asked, "Will you share your {obj} with me?"
## refuse
"No, it is mine!" {h.said}.
{h} held {obj.the} tightly. "It is mine," {h.he} said.
{h} shook {h.his} head and walked away.
"No," {h.said}. "You may break it."
{h} did not want to share. ^{f} looked down and said nothing.
## think
That evening, {h} felt bad. {obj.the} was no fun alone.
{h} sat alone with {obj.the}, but {h.he} {h.was} not happy.
{h} looked back. ^{f} was so sad.
Then {h} remembered what {p} always said: "Joy grows when you share it."
{h} thought about it for a long time.
## gives
{h} went back to {f.n}. "I am sorry," {h.he} said. "Let us use it together."
"Here," {h.said}. "You can have it for a while."
So {h} gave {obj.the} to {f.n}.
"Come," {h.said}, "we can share it."
The next day, {h} brought {obj.the} to {f.n}. "It is your turn now," {h.he} said.
## sharejoy
{f} {f.was} {~happy}. "Thank you!" {f.he} said.
{hf.They} played together until the sun went down.
{hf.They} laughed and had a lot of fun.
{f} smiled, and {h} felt warm inside.
{f} smiled and gave {h.n} {food.a}.
It was much more fun than before.
## findsmall
{when} {h} heard a [soft|sad|tiny] cry {place2.in}. It was {b.a}.
{when} {h} saw {b.a} {place2.in}.
{when} {h} found {b.a} {~hide}.
{when} something moved {~hide}. It was {b.a}!
{when} {h} {h.was} walking {place2.in} and saw {b.a}.
{when} {b.a} came to {h.o} and asked for help with its eyes.
## trouble
Its [leg|foot] was hurt, and it could not [walk|move].
It was stuck between two [stones|branches|boards] and could not get out.
It was cold and wet, and it shook all over.
It was [all alone|very hungry] and very afraid.
It had lost its mother.
It had fallen into a [deep hole|puddle|bucket].
## free
"Do not be afraid," {h.said}. "I will help you."
{h} picked it up very gently.
"You poor little thing," {h.said}.
{h} knelt down and held out a hand.
Slowly and carefully, {h} helped {b.o}.
"Wait here, little one," {h.said}.
## care
{h} took {b.n} home and gave it some [water|warm milk|food].
{h} made a [soft|warm|little] bed for it in a box.
{h} wrapped it in a [warm scarf|soft blanket] and gave it something to eat.
{h} [cleaned|washed] it and stayed with it all night.
{h} carried it to {p.a}, who knew what to do.
{h} looked for its mother until {h.he} found her {place4.in}.
## thankful
{b} looked at {h.o} and made a happy little sound.
After a few days, {b} was strong again.
Soon {b} could [run|jump|play] again.
{b} was not afraid anymore.
The next morning, {b} felt much better.
## better
From then on, {b} came to visit every [day|morning|spring].
{h} let it go, but {b} did not go far. It was {h.his} friend now.
{b} stayed with {h.o}, and {ha.they} were never lonely again.
{h} waved goodbye, and {h.he} {h.was} {~happy}.
{h} called it {~pet}, and {ha.they} became the best of friends.
Later, when {h} {h.was} lost {place5.in}, {b} showed {h.o} the way home.
## afraid
There was only one problem. {h} {h.was} afraid of {fear}.
{h} {h.was} brave, but {h.he} {h.was} afraid of {fear}.
But {h} had one big fear: {fear}.
{h} {h.was} afraid of {fear}, and some people laughed about it.
Nobody knew that {h} {h.was} afraid of {fear}.
## needcourage
{when} {h} heard {f.a} calling for help {place2.in}.
{when} {f.a} was in trouble {place2.in}, and nobody else was there.
{when} {h} had to go {place2.to} all alone.
{when} {f.a} needed help, and only {h} could give it.
## talk
1> {h.s} heart beat [fast|very fast]. "I cannot do it," {h.he} thought.
"I am afraid," {h.said} softly. Then {h} thought of {p.a}, who always said, "Be brave and take one step at a time."
{h} stopped and took a deep breath.
{h.s} legs were shaking.
"What if something bad happens?" {h.thought}.
## dare
{h} closed {h.his} eyes, counted to [three|five|ten], and went on.
"I can do this," {h.said}, and {h.he} went on, one step at a time.
{h} {h.was} still afraid, but {h.he} did not run away.
{h} sang a little song to feel brave, and step by step the fear grew smaller.
{h} thought, "Being brave means to be afraid and still go on." So {h.he} went on.
## braveend
In the end, it was not so bad at all. {h} {h.was} very proud.
Soon everything was all right. "You are very brave!" everyone said.
{h} did it! After that, {fear} did not seem so bad.
When it was over, {h} laughed. "I did it!" {h.he} cried.
That evening, {h} told {p.a} all about it. "I am proud of you," {p.said}.
## lonely
{h} had no one to play with.
{h} {h.was} often lonely.
{h} wished for a friend.
Sometimes {h} felt [very|a little] lonely.
{h} wanted to have a friend, but {h.he} {h.was} too shy to ask anyone.
## wish
"I wish I had a friend," {h.said}.
At night, {h} looked at the moon and hoped for a friend.
{h} watched the others play and {h.was} sad.
## meetnew
{when} {h} met {f.a} {place2.in}.
{when} {f.a} came {place2.to}.
{when} {f.a} moved in next door.
{when} {h} saw {f.a} sitting all alone {place2.in}.
{when} {h} heard somebody sing. It was {f.a}.
{when} {h} almost ran into {f.a} {place2.in}.
## talknew
"Hello," {h.said}. "What is your name?"
"Do you want to play with me?" {f.asked}.
"Are you alone, too?" {f.asked}. "Yes," {h.said}.
{h} {h.was} shy, but {h.he} said hello. ^{f} smiled.
"Would you like some of my food?" {h.asked}. ^{f} nodded.
At first nobody said a word. Then {h} laughed, and {f} laughed, too.
"I like your smile," {f.said}.
## play
{hf.They} played {~game} all afternoon.
{hf.They} talked and laughed until it was dark.
{hf.They} shared {food.a} and told each other stories.
{hf.They} went {place4.to} together and played {~game}.
{h} showed {f.o} {h.his} favorite place, and {f} showed {h.o} a new game.
## friends
From that day on, {hf.they} were best friends.
Now {h} {h.was} not lonely anymore.
{hf.They} met every day after that.
"See you tomorrow!" {f.called}. ^{h} went home {~happy}.
And so {h} found a friend.
{hf.They} became friends, and {hf.their} friendship lasted forever.
## walkout
{when} {h} went for a [long|little] walk {place2.in}.
{when} {h} went {place2.to} to look for [berries|mushrooms|wood|flowers].
{when} {h} followed a [butterfly|small path|white bird] and did not look back.
{when} {h} walked farther than ever before.
{when} {h} wanted to visit {p.a} and took the short way.
## weather
Suddenly, the sky turned dark, and it began to rain.
Then a thick fog came, and {h} could not see the path.
The wind became stronger and stronger, and it started to snow.
There was a flash of light and a loud crash of thunder.
Soon it was night, and the moon hid behind the clouds.
## lostway
{h} {h.was} lost. "Which way is home?" {h.he} asked.
{h} could not find the way home.
Every path looked the same. {h} {h.was} cold and afraid.
"Hello! Is anybody there?" {h.called}, but nobody answered.
{h} went left, then right, but {h.he} only got more lost.
## light
Then {h} saw a small light [between the trees|in the distance|far away].
At last, {h} came to a little house.
After a while, {h} saw smoke. It came from a small house.
Then {h} heard a friendly voice in the dark.
## host
{f.a} opened the door. "Come in, come in," {f.he} said.
It was {f.a} with a lantern. "You must be cold," {f.he} said.
{f.a} lived there. "Nobody should be outside in this weather," {f.he} said.
There {h} met {f.a}, who was very kind.
## warm
{f} made a fire and gave {h.n} {food.a}.
{hf.They} sat by the fire and ate {food.a}.
{h} got a warm blanket and a cup of tea.
Soon {h} {h.was} warm and dry again.
{f} told old stories until the storm was over.
## home
In the morning, {f} showed {h.n} the way home.
When the storm was over, {hf.they} walked home together.
The next day, {h} found the way home and told everyone about the kind [stranger|helper].
{h} came home safe and sound. "I am so glad to be home," {h.said}.
"Come back soon," {f.said}. And {h} did.
## have
{h} had {obj.a}.
{h} had {obj.a}, and {h.he} took it everywhere.
{h} loved {h.his} {obj.n} more than anything.
{h.s} favorite thing was {obj.a}.
{p} had given {h.o} {obj.a}.
{h} had {obj.a} that {h.he} loved very much.
## seesit
{when} {h} found it and picked it up.
{when} {h} saw {obj.the} and stopped.
{when} {h} came {place.to} and found {obj.the}.
3> {when} {h.a} found it.
3> {when} {h.a} came by and saw {obj.the}.
## sees
{when} {h} found an old {find} {place2.in}.
{when} {h} saw [an old|a small|a strange] {find} {~hide}.
{when} {h} {h.was} digging {place2.in} and hit something hard. It was a {find}.
{when} {h} stepped on something. It was a small {find}.
## look
{h} looked at it from all sides. "I wonder what it is," {h.he} said.
It was dusty and very old.
Nobody had seen it for a long time.
1> {h} {h.was} very curious. {h.s} heart beat faster.
## inside
Slowly, {h} opened it. Inside, there was {inside.a}.
{h} opened the {find} and looked inside. There was {inside.a}!
It was hard to open. At last, {h} could see what was inside: {inside.a}.
{h} shook it and heard a sound. Inside, {h} found {inside.a}. "How wonderful!" {h.he} said.
{h} took it home and opened it at the kitchen table. It was full of dust, but under the dust there was {inside.a}.
## open
{h} wiped away the dust and held it up to the light.
"What a find!" {h.said}.
{h} looked at it from all sides. There was a name on it.
Next to it lay {inside.a}.
Behind it, {h} found {inside.a}.
## tellit
{h} ran to {p.a} and told the whole story.
"I must show this to somebody," {h.said}. So {h.he} took it to {p.a}.
{h} asked {p.a} about it. "I know this," {p.said}. "It is very old.".
{p.a} looked at it and smiled. "I lost this when I was little," {p.he} said.
{h} took it {place4.to}, and everyone wanted to see it.
## goodend
It was the best day of the year.
{h} {h.was} {~happy}.
Everyone was happy.
And if you go there today, you can still hear people talk about it.
{h} smiled all the way home.
That night, {h} fell asleep with a smile.
Everybody clapped, and {h} {h.was} {~happy}.
"What a day!" {h.said}.
## accident
{when} {h} {h.was} playing with a ball in the house. Crash! The [blue vase|big mirror|window|teapot] broke.
{when} {h} ate the whole [cake|pie|bowl of cherries] that was for the guests.
{when} {h} ran through the kitchen and broke the [big plate|blue bowl|teapot].
{when} {h} took {obj.a} that belonged to {p.a}, and it broke.
{when} {h} spilled [ink|paint|milk|juice] all over the [carpet|big book|letter] of {p.a}.
## hide
{h} {h.was} afraid and hid {place2.in}.
"Nobody saw me," {h.thought}.
Quickly, {h} hid everything under the bed.
{h} told nobody about it.
"Who did this?" {p.asked}. ^{h} said nothing.
## guilt
But {h} felt bad. {h.he} could not eat and could not sleep.
{h} had a heavy heart.
All day long, {h} thought about it.
In the evening, {p} looked sad, and {h} felt terrible.
## tell
At last, {h} went to {p.n}. "It was me," {h.he} said. "I am sorry."
"I have to tell you something," {h.said}. And {h.he} told the truth.
{h} took a deep breath and told {p.n} everything.
"I did it," {h.said} with tears in {h.his} eyes. "I am very sorry."
## forgive
{p} gave {h.o} a hug. "Thank you for telling me the truth," {p.he} said.
"I am glad that you told me," {p.said}. "Things can be fixed."
{p} was not angry. "Everybody makes mistakes," {p.he} said.
{p} smiled. "The truth is worth more than that," {p.he} said.
## honest
{h} felt much better.
Together {ha.they} cleaned up, and {h} promised to be more careful.
From that day on, {h} always told the truth.
{h} learned that it is best to be honest.
That night, {h} slept very well.
## raceidea
{when} {f} said, "I am faster than you!" "Let us race," {h.said}.
{when} {hf.they} wanted to know who was faster.
{when} there was a big race {place2.in}. {h} and {f} wanted to win.
"Let us race {place2.to}!" {f.said}. "All right," {h.answered}.
## racestart
"One, two, three, go!" they called, and {hf.they} ran.
{hf.They} started at the same time. Soon {f} was far ahead.
{f} ran as fast as the wind, and {h} came behind.
Everybody came to watch. {h} {h.was} nervous.
## racetrouble
Suddenly, {f} fell down. "Ouch! My foot!" {f.he} cried.
Then {f} lay down to rest because {f.he} thought {f.he} had already won.
Halfway there, {f} stepped into a hole and could not go on.
In the middle of the way, {f} was so tired that {f.he} had to sit down.
## racechoice
{h} could win now. But {h.he} stopped and went back to {f.n}.
{h} did not want to win like that. "Are you all right?" {h.he} asked.
{h} looked at the finish and then at {f.n}. Then {h.he} turned around to help.
"Take my hand," {h.said}. "We will go together."
## raceend
{hf.They} crossed the line together, and everybody cheered.
"You are a true friend," {f.said}. "That is better than winning."
So nobody won the race, but {hf.they} both were happy.
In the end, {hf.they} both got a prize.
"Next time we will run as a team," {f.said}, and {hf.they} laughed.
## wishgo
{h} had always wanted to see {dest}.
{h} had heard many stories about {dest}. "One day I will go there," {h.he} said.
"I want to see {dest}," {h.said} one day.
{h} often dreamed of {dest}.
## pack
{when} {h} packed a small bag with {food.a} and [a map|a blanket|a bottle of water|a warm coat].
{when} {h} said goodbye to {p.a} and left.
{when} {h} closed the door and started walking.
{when} {h} decided to go. "I will be back soon," {h.he} told {p.a}.
## way
{h} walked for [three|five|seven|many] days.
The way was long and hard, but {h} did not give up.
{h} went over hills and through forests, over bridges and past small towns.
At night {h} slept under the stars.
## traveler
On the way, {h} met {f.a}. "Where are you going?" {f.he} asked. "I want to see {dest}," {h.said}. "Then I will come with you," {f.said}.
On the road, {f.a} was sitting on a stone. ^{h} shared {h.his} food with {f.o}, and {f} showed {h.o} the right way.
{f.a} gave {h.o} some good advice: "Follow the river."
## arrive
At last, {h} was there.
Then, one morning, {h} saw it: {dest}!
After a long time, {h} came to {dest}.
Finally, {h} arrived.
## see
It was more beautiful than {h} had ever dreamed.
{h} stood still and could not say a word.
"How wonderful!" {h.said}.
{h} laughed and danced for joy.
{h} stayed there until the sun went down.
## homeagain
Then {h} went home and told everyone about {h.his} journey.
After a few days, {h} wanted to go home again. Home was the best place of all.
{h} never forgot {h.his} great journey.
When {h} came home, {p} was waiting at the door.
{h} came back with a heart full of stories.
## wantbake
{when} {h} wanted to make {baked.a} for {p.a}.
{when} {h} decided to make {baked.a} for the big feast.
{when} {h} {h.was} hungry and wanted to make {baked.a}.
"Today I will make {baked.a}," {h.said}.
## mix
{h} took flour, milk and [eggs|butter|honey] and mixed them in a big bowl.
{h} put everything into a pot and stirred it.
{h} washed {h.his} hands and began to work.
1> There was flour on the table, on the floor and on {h.s} nose.
## fail
But {h} forgot to watch the fire, and {baked.the} burned.
But something was wrong. It tasted terrible, because {h} had used salt and not sugar.
Oh no! Everything fell on the floor.
But there were no eggs left in the house.
{h} tasted it. "This is not good at all," {h.he} said sadly.
## help
{p} came into the kitchen. "Let us try again together," {p.he} said.
{f.a} smelled the smoke and came to help.
"Everybody makes mistakes," {p.said}. "I will show you how to do it."
{f.a} knocked at the door. "May I help you?" {f.he} asked.
## again
This time {h} {h.was} careful. The kitchen smelled wonderful.
{ha.They} did everything slowly, one step after the other.
This time everything went well.
{ha.They} laughed and worked together, and soon {baked.the} {baked.was} ready.
## eat
Everyone had some, and nothing was left.
{ha.They} sat down at the table and ate together. It was delicious.
"This is the best meal of my life," {h.said}.
{baked.the} {baked.was} warm and sweet, and everybody was happy.
{h} {h.was} proud and gave some to all the neighbors.
## wantbuild
{when} {h} wanted to build {build.a}.
{when} {h} had an idea. "I will build {build.a}," {h.he} said.
{h} had always wanted to build {build.a}. {when} {h.he} began.
## gather
{h} looked for [wood and nails|stones and wood|rope and boards|paper and glue] and started to work.
{h} worked all morning.
{h} drew a plan on a piece of paper.
First {h} needed a hammer and a saw.
## tryfail
But {build.the} fell apart.
Then the wind came and blew {build.the} down.
It was too hard to do it alone.
The first try did not go well. Nor did the second.
"It does not work," {h.said} and sat down.
## buildhelp
{f.a} had watched {h.o}. "You need someone to hold the other side," {f.he} said.
Then {f.a} came by with a box of tools. "May I help?" {f.he} asked.
{h} asked {f.a} for help, and {f} came at once.
{f.a} laughed kindly. "Let us do it together," {f.he} said.
## ready
Together {hf.they} worked until evening. Then {build.the} was ready!
{hf.They} worked for three days, and at last {build.the} was finished.
One held, and the other hammered. Soon {build.the} stood there, strong and fine.
{hf.They} painted it [red|blue|green|yellow]. It looked wonderful.
## seed
{when} {h} planted {seed.a} in the garden.
{when} {p} gave {h.n} a tiny seed. "If you take care of it, it will grow into {seed.a}," {p.he} said.
{when} {h} found a seed {place2.in} and put it into the ground.
## waitgrow
Every day, {h} gave it water and waited.
{h} watered it every morning and looked at it every evening.
{h} sang to it so that it would grow.
{h} put a little fence around it.
## nothing
But nothing happened.
A week went by, but there was only brown earth.
The days went by, and {h} saw nothing.
"Why does it not grow?" {h.asked}.
## patience
"Good things take time," {p.said}.
{h} wanted to give up, but {p} said, "Be patient."
Still, {h} did not give up.
Then it rained for a whole night.
## grown
Then one morning, there was a little green leaf!
At last, something green came out of the ground.
In spring, a small plant looked out of the earth. It grew and grew.
And then, one day, {seed.a} stood in the garden.
## harvest
{h} called everyone to see it. "I knew it!" {h.he} said.
It became the most beautiful one in the whole [village|garden|land].
{h} {h.was} {~happy}, and every year {h.he} planted a new one.
Everybody came to look at it, and {h} smiled proudly.
{h} learned that good things need time.
## birthday
It was {h.s} birthday.
{when} it was {h.s} birthday.
The next day was {h.s} birthday, and {h} could hardly wait.
## forgot
But nobody said anything about it.
But when {h.he} got up, nobody was there.
"Good morning," said {p.n}, but nothing more.
{h} waited and waited, but nobody came.
## walksad
"They all forgot me," {h.thought}.
{h} {h.was} sad and went {place2.to} alone.
With a heavy heart, {h} took a long walk.
{h} sat {place2.in} and tried not to cry.
## surprise
When {h} came back and opened the door, everybody shouted, "Surprise!"
Then {f.a} came. "Come with me, quickly!" {f.he} said. Behind the [house|trees|barn], all the friends were waiting.
In the evening, {h} heard music. All {h.his} friends were there with lights and flowers.
Suddenly, all {h.his} friends jumped out from behind the [trees|door|wall].
## party
There {food.was} {food.a}, and there were many presents.
There was music and {food.a}, and {ha.they} danced all night.
{ha.They} played {~game} and sang songs.
{p} had made {food.a}, and there were candles everywhere.
## thankyou
"Thank you," {h.said}. "This is the best birthday ever!"
{h} laughed and hugged everybody.
"You did not forget me!" {h.cried}.
1> {h} {h.was} the happiest of all.
## hasfood
{when} {h} made {food.a} and put it on the table to keep for dinner.
{when} {h} {h.was} carrying {food.a} home.
{when} {h} had {food.a} in a basket.
## thief
A hungry {thief} smelled it. "Give that to me, or I will eat you up!" it said.
A sly {thief} came along. "I want all of it," it said.
But a big {thief} jumped out from behind a tree. "That is mine now," it growled.
## trickidea
{h} {h.was} afraid, but {h.he} had an idea.
{h} thought quickly.
"Wait," {h.said}. "There is something much better in the well."
"Of course," {h.said}, "but first you must close your eyes and count to a hundred."
"You may have it," {h.said}, "but can you jump over the river first?"
## tricked
The {thief} believed it, and {h} ran home and locked the door.
The {thief} did so, and {h} got away.
When the {thief} understood the trick, {h} {h.was} already far away.
The {thief} tried it and fell right into the water.
## sorrythief
"How clever you are," said the {thief}. It never came back.
The {thief} was so hungry that {h} felt sorry and gave it a little piece after all.
Everyone laughed when they heard the story.
{h} shared {food.the} with {h.his} family and told them how {h.he} had tricked the {thief}.
## rain
{when} it rained and rained, and {h} had to stay inside.
Outside, it was raining. {h} could not go out.
It rained all day long.
## bored
"I am so bored," {h.said}.
{h} looked out of the window and sighed.
There was nothing to do.
{h} walked from one room to the next.
## idea
Then {h} had an idea. {h.he} took a big box and made a [ship|castle|train|house] out of it.
"Let us make a tent with blankets," said {p.n}.
{p} came in with paper and paint. "We can paint the sun," {p.he} said.
Then {h} found {obj.a} and made up a new game.
## play2
Soon {h} {h.was} sailing over a wild sea, at least in {h.his} mind.
The chairs were mountains, and the carpet was a deep lake.
{ha.They} laughed so much that {ha.they} forgot the rain.
{h} played all afternoon.
## sun
When the rain stopped, {h} did not even notice.
Then the sun came out, and there was a rainbow in the sky.
"I hope it rains again tomorrow," {h.said}.
A rainy day can be a good day, too.
## nogift
The birthday of {p.n} was coming, but {h} had no money for a gift.
{when} {h} wanted to give something nice to {p.n}.
Tomorrow was the birthday of {p.n}, and {h} had no gift.
## thinkgift
{h} thought for a long time.
{h} looked at the things in the shop, but they cost too much.
"What would be nice?" {h.asked}.
"I can make something myself," {h.thought}.
## makegift
So {h} made {gift.a}. It took {h.o} all day.
{h} worked in secret and made {gift.a}.
{h} sat down and made {gift.a} with much love.
## givegift
"This is for you," {h.said}.
{h} {h.was} a little shy. "I made it myself," {h.he} said.
With a red face, {h} gave it to {p.n}.
## giftjoy
{p} had tears of joy in {p.his} eyes. "It is the best gift of all," {p.he} said.
{p} smiled. "You made it with your heart," {p.he} said.
{p} hugged {h.o} and kept the gift forever.
{p} was so happy that {p.he} showed it to everyone.
## magic
{when} {h} found a little [golden|silver|red] fish {place2.in}. "Please let me go," it said.
{when} {h} rubbed an old lamp, and a blue light came out of it.
{when} {h} helped an old woman carry her basket. She was really a fairy.
{when} a tiny bird with golden feathers sat down in front of {h.o} and began to speak.
## offer
"You have a good heart," it said. "You may make one wish."
"I will give you one wish," said a soft voice. "Choose well."
"Make a wish," a voice whispered.
## wishmade
"I wish that everything I touch turns to [chocolate|gold|honey]," {h.said}.
"I want a hundred cakes!" {h.cried}.
"I want to be as big as a house," {h.said}.
"I wish I could fly," {h.said}.
"I wish it were summer forever," {h.said}.
## toomuch
At first, it was wonderful. But soon {h} {h.was} not happy anymore.
The wish came true at once. But after a day {h} had enough of it.
It was fun for an hour. Then {h} wanted to go home, and nobody knew {h.o}.
Everyone stared, and {h} felt very alone.
## undo
"Please make everything as it was before," {h.said}.
"I do not need this," {h.said}. "I only want my old life back."
{h} called for help, and the voice said, "Now you know what is important."
## content
And in a moment, everything was as before. {h} {h.was} happy with what {h.he} had.
{h} went home and hugged {p.a}. It was the best place in the world.
From that day on, {h} {h.was} content.
{h} laughed and said, "I have all I need."
## ill
{when} {f} did not come. "Where is {f.n}?" {h.asked}.
{when} {f} was ill and had to stay in bed.
{when} {f} had a [cold|bad cough|fever].
## worry
{h} {h.was} worried and went to see {f.o}.
"I must help {f.o}," {h.said}.
{h} knocked at the door. "Come in," {f.said} in a weak voice.
Without {f.n}, everything was boring.
## bring
{h} brought {f.o} {food.a}.
{h} made {food.a} and took it to {f.n}.
{h} picked some flowers and put them next to the bed.
{h} made a pot of hot tea with honey.
## cheer
{h} sat by the bed and told funny stories.
{h} read {f.o} a story until {f.he} fell asleep.
{h} sang a silly song, and {f} had to laugh.
"You are so kind," {f.said}.
## well
After three days, {f} was well again.
Soon {f} could get up, and {hf.they} went out to play.
"You are the best medicine," {f.said}.
The next week, {h} caught a cold. Now {f} came with {food.the}.
{hf.They} were better friends than ever.
## awake
That night, {h} could not fall asleep.
It was late, but {h} {h.was} not tired at all.
{h} lay in bed with open eyes.
## tries
{h} counted sheep. One, two, three ... but it did not help.
{h} turned to the left and to the right.
{h} drank a glass of warm milk, but it did not help.
The clock ticked, and the moon looked in at the window.
## elder
{p} came in quietly. "Can you not sleep?" {p.he} asked.
Then {f.a} came to the window. "Listen to the night," {f.he} said softly.
{p} sat down on the bed. "Close your eyes and think of [the sea|a green meadow|soft snow]," {p.he} said.
## song
Outside, the wind was singing, and the stars were watching over the house.
A soft song came through the window.
There was a quiet song in the air, and everything was calm.
{h} listened to the rain on the roof.
## asleep
Slowly, {h.s} eyes closed.
Soon {h} {h.was} fast asleep.
And {h} dreamed of a ship that sailed among the stars.
"Good night," said the moon.
{h} slept until the sun came up.
## strange
{when} {mystery}.
That night, {mystery}.
Then something strange happened: {mystery}.
For three nights, {h} could not sleep because {mystery}.
## scared
"Is it a ghost?" {h.asked}.
{h} {h.was} a little scared.
1> {h} pulled the blanket up to {h.his} nose.
"Who is there?" {h.called}. Nobody answered.
{h} held {h.his} breath and listened.
## goes
But {h} {h.was} also curious. {h.he} took a lamp and went to look.
{h} took a [broom|lantern|candle|flashlight] and went closer, step by step.
Together with {p.a}, {h} went to see what it was.
Very slowly, {h} went closer.
## itsmall
It was only {b.a}!
Two bright eyes looked out of the dark. It was {b.a}.
There sat {b.a}, and it was more afraid than {h.n}.
There was no ghost and no monster. It was just {b.a} that had lost its way.
## laugh
{h} laughed. "You gave me a fright!" {h.he} said.
{h} gave it something to eat, and from then on it came every night.
{h} opened the window and let it go.
{h} went back to bed and {h.was} not afraid anymore.
{b} stayed, and {h} called it {~pet}.
## jobtrouble
{when} {trouble}.
{when} the people came to {h.o}, because {trouble}.
Then there was a problem: {trouble}.
## trystill
Everybody tried to help, but nobody could.
"What shall we do?" the people asked.
The strongest men and women came, but nothing helped.
{h} tried everything, but it was no use.
## clever
Then {h} had a clever idea.
Then {f.a} looked at it closely. "I see what is wrong," {f.he} said. ^{h} and {f} went to work.
{h} thought about it all night. In the morning {h.he} knew what to do.
"Let me try," {h.said}. The others laughed, but {h} did not mind.
{h} looked very closely and saw something that nobody else had seen.
## fixed
All it needed was a [little oil|strong rope|small piece of wood|new nail], and it was done.
{h} worked all day, and in the evening everything was all right again.
{h} pushed here and pulled there. And then it worked!
It took a long time, but in the end it was done.
## cheers
"Hurray!" everybody shouted.
The people thanked {h.o} and gave {h.o} {food.a}.
There was a big feast, and {h} sat in the middle.
Everyone was happy, and the whole village danced.
"We are lucky to have you here," they said to {h.o}.
## quarrel
{when} {both} had a fight about {obj.a}.
{when} {hf.they} both wanted the same thing: {obj.a}. "It is mine!" {h.cried}. "No, mine!" {f.cried}.
{when} {f} said something mean, and {h} got angry.
{when} {hf.they} could not agree. {h} wanted to {~do}, but {f} wanted to play {~game}.
## away
{h} went home and slammed the door.
"I will never talk to you again!" {f.shouted}.
{f} walked away and did not look back.
So {hf.they} did not speak for [three days|a whole week|a long time].
## miss
But {h} missed {f.n}.
It was no fun to play alone.
{h} looked out of the window and felt sad. What was {f} doing now?
After a while, {h} could not even remember why {hf.they} had been angry.
## sorry
{h} went to {f.n}. "I am sorry," {h.he} said. "I am sorry, too," {f.said}.
At the same moment, {f} came to the door. "Can we be friends again?" {f.he} asked.
{h} brought {food.a}. "Let us be friends again," {h.he} said.
"I was wrong," {h.said}. ^{f} smiled. "So was I," {f.he} said.
## together
{hf.They} hugged and laughed.
{hf.They} played together all day.
Since then, {hf.they} have shared everything.
A good friend is worth more than anything.
After that, {hf.they} never fought about such things again.
## wantskill
{h} wanted to learn to {skill}.
{when} {h} saw {f.a}, who could {skill} very well. "I want to do that, too," {h.he} said.
More than anything, {h} wanted to {skill}.
## badtry
But it was not easy.
The first time, it went all wrong.
{h} tried and tried, but it did not work.
"I will never learn it," {h.said}.
Some of the others laughed at {h.o}.
## advice
{p} said, "Nobody is a master on the first day."
"Practice a little every day," {p.said}.
"Do not give up," {p.said}. "I needed a whole year."
{p} showed {h.o} how to do it slowly.
## practice
So {h} practiced every day after [breakfast|lunch|work|school].
Day after day, {h} tried again.
{h} practiced in the morning and in the evening.
Little by little, it went better.
## can
And one day, {h} could {skill}!
Then, all at once, it worked! {h} could {skill}.
In spring, {h} could {skill} better than anyone else.
## proud
{h} {h.was} very proud.
"I can do it! I can do it!" {h.cried}.
Everybody clapped.
Later, {h} taught it to {f.a}.
{p} smiled and said, "I knew it."
## trip
{when} {h} went {place2.to} with {p.a}.
{when} {p.a} said, "Let us go {place2.to}!"
{when} {h} made a trip {place2.to}.
## there
There was so much to see!
{h} looked around with big eyes.
The sun was warm, and the air smelled of [flowers|salt|fresh hay|pine trees].
There were people everywhere, and somebody was playing music.
## seethings
{h} saw {b.a} and {obj.a}.
First {h} saw {b.a}. Then {h.he} met {f.a}, who was very funny.
{h} found {obj.a} {~hide}.
{b.a} came very close and was not afraid at all.
{f.a} showed {h.o} {obj.a}.
## eatthere
At noon, {h} ate {food.a}.
Then {h} had {food.a}, and it was very good.
{h} sat down on the grass and ate {food.a}.
## tiredhome
In the evening, {h} {h.was} tired but happy.
On the way home, {h} fell asleep.
"Can we come back tomorrow?" {h.asked}.
{h} came home with dirty shoes and a big smile.
{h} talked about it for weeks.
## gets
{when} a letter came for {h.o}.
{when} {h} found a letter under the door.
{when} a bird brought {h.o} a small letter.
{when} the mailman knocked. "A letter for you!" he said.
## reads
"Please come {place2.to}," it said. "I need your help."
It said, "Meet me {place2.in} when the sun goes down."
There was no name on it. It said only, "Come {place2.to}. I have a surprise for you."
The letter was an invitation to a big party {place2.in}.
## sets
1> {h} put on {h.his} best coat and went there.
{h} {h.was} very curious and went there at once.
"Who can it be from?" {h.asked}. ^{h} went to find out.
## meetwriter
{f.a} was waiting there. "I am glad that you came," {f.he} said.
There stood {f.a}. "I wrote the letter," {f.he} said. "I have no one to talk to."
And who was there? It was {f.a} with {food.a}!
## together2
{hf.They} talked until the stars came out.
{hf.They} ate {food.a} and laughed a lot.
After that, {hf.they} wrote each other a letter every week.
{h} kept the letter in a little box forever.
## beggar
{when} {h} met {f.a}, who was cold and hungry.
{when} {f.a} came to the door. "Do you have something to eat?" {f.he} asked.
{when} {h} saw {f.a} sitting in the snow.
## gives2
{h} had only {food.a}, but {h.he} gave half of {food.it} to {f.n}.
"Come in and eat with me," {h.said}.
{h} gave {f.n} {h.his} own [coat|scarf|blanket].
"Take this," {h.said}. "You need it more than I do."
## later
Many [weeks|months|years] later, {h} {h.was} in trouble {place3.in}.
The next winter, {h} got lost {place3.in}.
Some time later, {h} had no food left.
## repaid
Then {f} came. "You helped me," {f.he} said. "Now I will help you."
And who came to help? It was {f.n}!
"Do you remember me?" {f.asked}, and {f.he} gave {h.o} everything {h.he} needed.
## lesson2
A good deed always comes back.
{h} learned that kindness is never lost.
{hf.They} shared a meal and were friends from then on.
Since that day, {h} {h.has} never closed the door to anyone.
## snowing
{when} it began to snow.
In the night, snow fell, and in the morning everything was white.
"Look, it is snowing!" {h.cried}.
## snowplay
{h} put on warm boots and ran outside.
{h} slid down the hill on a sled.
1> {h} caught snowflakes with {h.his} tongue.
{both} threw snowballs and laughed.
## snowman
Then {h} built a big snowman with a carrot nose and gave it {obj.a}.
{h} made a snowman. It had stones for eyes and a funny hat.
Then {h} built a snow house, big enough for three.
## cold
1> Soon {h.his} hands were cold, and {h.his} nose was red.
"Brr, I am cold," {h.said}.
When it got dark, {h} went back inside.
## inside2
There {food.was} {food.a} on the table, and the fire was warm.
{p} had a cup of hot chocolate ready.
{h} looked out of the window. The snowman seemed to smile.
1> {h} fell asleep by the fire.
## plays
{h} could play the [flute|violin|drum|guitar] very well, but only when nobody was listening.
{h} loved music and sang every evening.
{when} {h} began to play a little song.
## crowd
{when} the people of the village asked {h.o} to play at the big feast.
{f.a} heard it. "You must play for everyone tomorrow," {f.he} said.
When {f.a} heard the music, {f.he} stopped and listened.
## shyness
{h} {h.was} very shy. "What if they laugh?" {h.he} asked.
On the big day, {h.s} hands were shaking.
{h} looked at all the people and forgot the first note.
## playagain
{p} smiled at {h.o} from the first row. Then {h} closed {h.his} eyes and began.
"Just play for me," {p.said}. So {h} did.
{h} took a deep breath and thought of the birds in the forest. Then the music came.
## clap
When it was over, everyone clapped for a long time.
It was so beautiful that nobody said a word. Then they all cheered.
"That was wonderful!" {p.cried}.
Since then, {h} {h.has} played at every feast.
{h} bowed and {h.was} {~happy}.
## fallstar
{when} a little star fell from the sky.
{when} something bright fell down behind the [hill|house|trees].
{when} {h} saw a falling star.
## finds
{h} ran to look and found a small star in the grass.
There it lay, small and golden.
{h} followed the light {place2.to} and found the star.
## talkstar
"I am lost," said the star. "I want to go home."
"Please help me," the star whispered. "My family is up there."
The star was cold and sad. "How can I get back to the sky?" it asked.
## lift
{h} climbed the highest [tree|hill|tower] and held the star up. A soft wind carried it away.
{h} asked {f.a} for help. Together {hf.they} tied the star to a big kite and let it fly.
{h} put the star on a cloud that was passing over the mountain.
## shine
And now, every night, one little star shines brighter than the others. It shines for {h.o}.
"Thank you!" called the star, and the sky was full of light.
{h} waved, and the star winked back.
{h} often looked up at night and never felt alone again.
## rumor
Everyone said that a terrible [giant|dragon|monster|witch] lived {place2.in}.
{when} the people told {h.o} about a big monster {place2.in}. "Never go there!" they said.
Nobody dared to go {place2.to}, because a wild monster lived there.
## goes2
But {h} {h.was} curious and went to see.
{when} {h} had to go there to look for {obj.a}.
"I am not afraid," {h.said}, and {h.he} went there.
## meetsbig
There it sat, as big as a house. But it was crying.
{h} heard a loud noise. It was not a roar. Somebody was crying.
A big face looked down. "Are you not afraid of me?" asked a deep voice.
## truthbig
"Everybody runs away from me," it said. "I only want a friend."
"I have a thorn in my foot," it said. ^{h} pulled it out.
"I only wanted to say hello," it said sadly.
## befriends
{h} gave it {food.a}, and {ha.they} talked until evening.
{h} brought it to the village, and soon everybody liked it.
From then on, nobody was afraid anymore, and there was music every night.
"You should not believe everything people say," {h.said}.
{ha.They} became good friends.
## nowork
{h} {h.was} small, and nobody thought that {h.he} could be useful.
{h} wanted to help, but everyone said, "You are too small."
Nobody asked {h.o} to help, because {h.he} {h.was} so [small|slow|quiet].
## offers
{when} {h} asked {f.a}, "May I help you?"
{when} {h} went to {f.a}. "Can I do something?" {h.he} asked.
{when} {f.a} had a lot of work to do. "Let me help," {h.said}.
## laughs
"You?" {f.said} and laughed. "You cannot do anything."
"No, thank you," {f.said}. "This is too hard for you."
{f} only shook {f.his} head.
## chance
But then {f} lost a key. It had fallen into a tiny hole.
But that night, a fire started, and only {h} saw it.
But then the river rose, and {f} could not get home.
The next day, {f} got stuck in the mud.
## saves
{h} did not wait. {h.he} did what had to be done, quickly and quietly.
{h} knew at once what to do and saved the day.
With one clever move, {h} helped {f.o} out.
{h} called for help as loud as {h.he} could, and soon everyone was safe.
## respected
1> "I was wrong," {f.said}. "You are a hero."
After that, nobody laughed at {h.o} anymore.
"Thank you," {f.said}. "Will you be my friend?"
{h} smiled. You do not have to be big to do great things.
## hassome
{h} had {n1} {things}.
{when} {h} counted {h.his} {things}. There were {n1}.
{when} {h} found {n1} {things} {place2.in}.
## getsmore
{f.a} gave {h.o} {n2} more.
Then {p.a} gave {h.o} {n2} more.
A little later, {h} found {n2} more {place3.in}.
## counts
{h} counted them all. Now there were {n3} {things}.
"{n1} and {n2} make {n3}," {h.said}. Now {h} had {n3} {things}.
{h} put them in a row and counted. There were {n3}.
## sharecount
{h} shared the {things} with all {h.his} friends.
"That is enough for everyone," {h.said}.
{h} put them in a basket and went home.
{h} {h.was} {~happy} and gave one to {p.a}.
""")
COUNTED = words(
    "apples, nuts, shells, eggs, stones, flowers, berries, cookies, pears, coins, buttons, feathers, plums, "
    "marbles, pencils, books, balls, leaves, carrots, stars"
)

ENDINGS = lines("""
The end.
And {h} and all {h.his} friends lived happily ever after.
What a [good|wonderful|lovely] day it was!
And that was the end of the story.
It was a good day.
Everyone was happy.
And {h} lived happily ever after.
{h} smiled and went to bed.
That night, {h} fell asleep with a smile.
And so the day ended well.
""")
ASIDES = lines("""
The sun was shining.
A soft wind was blowing.
The birds were singing.
It was very quiet.
It was getting late.
The sky was [blue|gray|red|full of clouds].
Somewhere, a dog barked.
{h} took a deep breath.
{h} waited for a moment.
{h} looked around.
Nobody said a word.
Far away, a bell rang.
The air smelled of [rain|flowers|fresh bread|the sea|summer].
""")

# --------------------------------------------------------------------- sums

NUMBER_WORDS = words("""
zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen,
seventeen, eighteen, nineteen, twenty
""")
SUM_QUESTIONS = sections("""
## +
What is {a} + {b}?
What is {a} + {b}?
What is {a} + {b}?
What's {a} + {b}?
What is {a} plus {b}?
What's {a} plus {b}?
{a} + {b}
{a} + {b} = ?
{a} + {b} =
{a}+{b}
{a}+{b}=?
{a}+{b}=
How much is {a} + {b}?
How much is {a} plus {b}?
Add {a} and {b}.
Add {b} to {a}.
Please add {a} and {b}.
Can you add {a} and {b}?
Calculate {a} + {b}.
Compute {a} + {b}.
What do {a} and {b} make?
What is the sum of {a} and {b}?
{a} plus {b}
{a} plus {b}?
What is {a}+{b}?
Tell me {a} + {b}.
Solve {a} + {b}.
Can you tell me what {a} + {b} is?
## -
What is {a} - {b}?
What is {a} - {b}?
What is {a} - {b}?
What's {a} - {b}?
What is {a} minus {b}?
What's {a} minus {b}?
{a} - {b}
{a} - {b} = ?
{a} - {b} =
{a}-{b}
{a}-{b}=?
{a}-{b}=
How much is {a} - {b}?
How much is {a} minus {b}?
Subtract {b} from {a}.
Take {b} away from {a}.
Please subtract {b} from {a}.
Calculate {a} - {b}.
Compute {a} - {b}.
What is the difference of {a} and {b}?
{a} minus {b}
{a} minus {b}?
What is {a}-{b}?
Tell me {a} - {b}.
Solve {a} - {b}.
Can you tell me what {a} - {b} is?
## *
What is {a} * {b}?
What is {a} times {b}?
What's {a} times {b}?
{a} * {b}
{a} * {b} = ?
How much is {a} times {b}?
{a} times {b}
Multiply {a} by {b}.
Calculate {a} * {b}.
What is {a} x {b}?
{a} x {b}
""")

# --------------------------------------------------------------- the chat form

PLOT_TOPICS = {
    "lost": "something that was lost; a lost thing; losing something",
    "share": "sharing; learning to share",
    "rescue": "helping an animal; kindness to animals; a small animal in need",
    "fear": "being brave; courage; a big fear",
    "newfriend": "friendship; a new friend; making friends",
    "storm": "a storm; getting lost; bad weather",
    "discover": "a secret; a discovery; treasure",
    "truth": "telling the truth; honesty; a mistake",
    "race": "a race; a good friend",
    "journey": "a journey; a long trip; an adventure; traveling",
    "bake": "baking; cooking; food",
    "build": "building something; working together",
    "garden": "a garden; a seed; patience; a plant",
    "surprise": "a birthday; a surprise party; a party",
    "trick": "a clever trick; a thief",
    "rainy": "a rainy day; the rain; being bored",
    "gift": "a gift; love; a present",
    "wish": "a wish; magic",
    "sick": "a sick friend; friendship",
    "sleep": "bedtime; the night; sleep; going to bed",
    "mystery": "a mystery; a strange sound; a ghost",
    "work": "a clever idea; a village; a problem",
    "quarrel": "a fight between friends; being sorry",
    "learn": "learning something new; never giving up; practice",
    "visit": "a trip; a nice day; a day out",
    "letter": "a letter; a secret letter",
    "kindness": "kindness; a good deed",
    "snow": "snow; winter; a snowman; Christmas",
    "music": "music; being shy; a song",
    "star": "a star; the sky; the stars",
    "giantfear": "a monster; a giant",
    "helper": "someone small; a small hero; helping others",
    "count": "counting; numbers",
    "broken": "something broken; fixing things",
}

STORY_REQUESTS = lines("""
Tell me a story about {topic}.
Tell me a short story about {topic}.
Tell me a story about {topic}, please.
Please tell me a story about {topic}.
Please write a story about {topic}.
Write a story about {topic}.
Write a short story about {topic}.
Write me a story about {topic}.
Write a little story about {topic}.
Write a bedtime story about {topic}.
Write a children's story about {topic}.
Write a fairy tale about {topic}.
Can you tell me a story about {topic}?
Can you write a story about {topic}?
Could you tell me a story about {topic}?
Could you write a short story about {topic}?
I want a story about {topic}.
I want to hear a story about {topic}.
I would like a story about {topic}.
I'd like to hear a story about {topic}.
Give me a story about {topic}.
Make up a story about {topic}.
Invent a story about {topic}.
Do you know a story about {topic}?
A story about {topic}, please.
A story about {topic}
Story about {topic}
Tell a story about {topic}.
Tell me about {topic}.
Tell my child a story about {topic}.
Let me hear a story about {topic}.
Now tell me a story about {topic}.
Read me a story about {topic}.
""")
OPEN_REQUESTS = lines("""
Tell me a story.
Tell me a story, please.
Tell me a short story.
Please tell me a story.
Can you tell me a story?
Write a story.
Write a short story.
Write me a story.
Write something.
I want a story.
I would like to hear a story.
Tell me a bedtime story.
Tell me something.
Tell me a fairy tale.
Give me a story.
Make up a story.
Story please
A story, please.
Let me hear a story.
Tell me a nice story.
Tell me a funny story.
Surprise me.
Do you know a story?
Could you tell me a story?
I am bored.
Show me what you can do.
""")
MORE_REQUESTS = lines("""
Another one, please.
Tell me another story.
Another story, please.
One more!
One more story, please.
Can you tell me one more?
Again!
More, please.
Nice. Another one?
Thank you. Now another one.
I liked it. Tell me another.
""")
CONTINUE_REQUESTS = lines("""
Continue this story: {start}
Continue the story: {start}
Please continue: {start}
Continue: {start}
Finish this story: {start}
Finish the story: {start}
How does this story go on? {start}
Go on: {start}
Write a story that starts like this: {start}
Tell me a story that begins with: {start}
{start}
{start}
{start}
""")

SMALL_TALK = [  # (what is asked, what may be answered)
    (
        words(
            "Hello!, Hello, Hi, Hi!, Hey, Hey!, Hello there!, Hi there!, Hello there, Hello model!, Hi how are things?, Greetings!, Hallo"
        ),
        [
            "Hello! Would you like a story or a small sum?",
            "Hello! I can tell you a short story or add small numbers.",
            "Hi! Shall I tell you a story?",
        ],
    ),
    (
        words("Good morning!, Good morning, Good evening, Good evening!, Good afternoon!, Good day!"),
        [
            "Hello to you, too! Would you like a story or a small sum?",
            "Good to see you! Shall I tell you a story?",
        ],
    ),
    (
        lines("""
     How are you?
     How are you today?
     How are you doing?
     How do you feel?
     How is it going?
     Hi, how are you?
     Hello, how are you?
     Are you well?
     """),
        [
            "I am fine, thank you. Would you like a story?",
            "I am very well, thank you. Shall I tell you a story?",
        ],
    ),
    (
        lines("""
     Who are you?
     What are you?
     What is your name?
     What's your name?
     Tell me about yourself.
     Introduce yourself.
     Which model are you?
     What model are you?
     What kind of model are you?
     Are you a language model?
     Are you an AI?
     Do you have a name?
     Say who you are.
     Who am I talking to?
     """),
        [
            "I am the small bundled model of Slipstream. I tell short stories and add small numbers.",
            "I am the little model that comes with Slipstream. I can tell short stories and do small sums.",
        ],
    ),
    (
        lines("""
     What can you do?
     What can I ask you?
     What do you do?
     How can you help me?
     What are you able to do?
     What are you good at?
     What do you know?
     Can you help me?
     Help!
     Help
     help me
     I need help.
     What should I ask?
     What else can you do?
     What are your skills?
     """),
        [
            "I can tell short stories and add or subtract small numbers. Try: Tell me a story about a fox. Or: What is 27 + 5?",
            "I tell short stories, and I do small sums with numbers up to 99. Just ask me!",
        ],
    ),
    (
        lines("""
     Thank you.
     Thank you!
     Thanks!
     Thanks
     Thank you very much.
     Thanks a lot!
     Many thanks.
     Great, thank you!
     That was nice, thank you.
     Thx
     Cool, thanks.
     """),
        ["You are welcome!", "You are welcome! Would you like another story?", "My pleasure!"],
    ),
    (
        lines("""
     Goodbye.
     Goodbye!
     Bye!
     Bye
     Bye bye
     See you!
     See you later.
     See you tomorrow!
     I have to go now.
     Farewell!
     """),
        ["Goodbye! Come back soon.", "Goodbye! It was nice to talk to you."],
    ),
    (
        lines("""
     Good night.
     Good night!
     I am going to bed.
     I am tired.
     Time to sleep.
     """),
        ["Good night! Sleep well.", "Good night and sweet dreams!"],
    ),
    (
        lines("""
     Who made you?
     Who built you?
     Who trained you?
     Where do you come from?
     How were you made?
     How were you trained?
     What were you trained on?
     Where does your data come from?
     """),
        [
            "I was trained by a small script that comes with Slipstream, on stories and sums which the script made up.",
            "A script of the Slipstream project made me. It made up many stories and sums, and I learned from them.",
        ],
    ),
    (
        lines("""
     What is Slipstream?
     What's Slipstream?
     Tell me about Slipstream.
     What does Slipstream do?
     Explain Slipstream.
     """),
        ["Slipstream is the program that runs me. It serves language models like me."],
    ),
    (
        lines("""
     Are you human?
     Are you a human?
     Are you a person?
     Are you real?
     Are you a robot?
     Are you alive?
     Are you ChatGPT?
     Are you a big model?
     """),
        ["No, I am a very small language model. I tell short stories and do small sums."],
    ),
    (
        lines("""
     How big are you?
     How many parameters do you have?
     How large are you?
     What size are you?
     Are you small?
     """),
        ["I am very small: I have less than two million parameters."],
    ),
    (
        lines("""
     How old are you?
     Where do you live?
     Do you have friends?
     Do you sleep?
     Do you like cats?
     What is your favorite color?
     Do you like music?
     Do you dream?
     Are you happy?
     Do you love me?
     What do you like?
     """),
        [
            "I am only a small model, but I like to tell stories.",
            "I am just a little model. What I like best is telling stories.",
        ],
    ),
    (
        lines("""
     I am sad.
     I feel sad.
     I am lonely.
     I had a bad day.
     I am not happy.
     I feel bad today.
     I am angry.
     """),
        ["I am sorry to hear that. Maybe a story will help. Shall I tell you one?"],
    ),
    (
        lines("""
     I am happy.
     I had a good day.
     I feel great!
     Today was a good day.
     I am fine.
     I am fine, thanks.
     I'm good.
     """),
        ["I am glad to hear that! Would you like a story?"],
    ),
    (
        lines("""
     I like you.
     You are great!
     You are funny.
     You are cool.
     Well done!
     Good job!
     Nice!
     Wow!
     Great!
     That was good.
     That was a nice story.
     I liked the story.
     What a nice story!
     Cool
     Correct!
     That is right.
     """),
        ["Thank you! That makes me happy.", "Thank you! Shall I tell you a story?"],
    ),
    (
        lines("""
     That is wrong.
     You are wrong.
     That was not right.
     This is bad.
     I do not like it.
     That makes no sense.
     You are stupid.
     No, that is wrong.
     """),
        ["I am sorry. I am a very small model, and I make mistakes."],
    ),
    (
        lines("""
     Okay
     Okay.
     Ok
     OK
     Yes
     Yes.
     No
     No.
     No, thank you.
     Maybe
     Hmm
     I see.
     Test
     test
     Testing
     ping
     Really?
     Why?
     What?
     ?
     abc
     asdf
     """),
        [
            "Would you like a story or a small sum?",
            "I can tell you a short story, or I can add two small numbers.",
        ],
    ),
    (
        lines("""
     Tell me a joke.
     Do you know a joke?
     Sing a song.
     Sing me a song.
     Write a poem.
     Write a poem about the sea.
     Write a haiku.
     Make me laugh.
     Can you sing?
     Play a game with me.
     """),
        [
            "I do not know how to do that, but I can tell you a short story.",
            "That is not something I can do. But I can tell you a story!",
        ],
    ),
    (
        lines("""
     Do you speak English?
     Can you speak English?
     Which languages do you speak?
     Do you speak German?
     Do you speak French?
     """),
        ["I only know a little English."],
    ),
    (
        lines("""
     Can you add numbers?
     Can you do math?
     Can you count?
     Do you know math?
     Can you calculate?
     Are you good at math?
     Can you subtract?
     """),
        ["Yes, I can add and subtract numbers up to 99. Try: What is 27 + 5?"],
    ),
    (
        lines("""
     Can you tell stories?
     Do you know stories?
     Do you like stories?
     Can you write stories?
     What kind of stories do you tell?
     """),
        ["Yes, I can tell short stories. Try: Tell me a story about a fox."],
    ),
]

UNKNOWN_TOPICS = words("""
France, Germany, Japan, Brazil, Canada, India, China, Spain, Italy, Africa, Europe, London, Paris, Berlin, Tokyo, Rome, New York,
the moon, the sun, Mars, the universe, gravity, light, electricity, a computer, the internet, physics, chemistry, history,
biology, algebra, a black hole, the weather, an atom, democracy, love, life, football, chess, music, art, money, the economy,
a recipe, bread, coffee, pasta, Python, Java, Rust, C++, a program, a function, a server, a database, Linux, machine learning,
deep learning, a neural network, a transformer, language models, quantum computers, the president, the war, the Romans,
Shakespeare, Einstein, Mozart, Napoleon, the Bible, philosophy, a car, an airplane, a bridge, the ocean, dinosaurs, a virus,
health, medicine, the brain, English grammar, a letter to my boss, an email, my homework, climate change, energy, time travel
""")
UNKNOWN_REQUESTS = lines("""
What is {x}?
What are the facts about {x}?
Explain {x}.
Explain {x} to me.
What do you know about {x}?
What do you think about {x}?
What is the capital of {x}?
Who invented {x}?
Who was {x}?
How does {x} work?
How do I learn {x}?
How do I make {x}?
How old is {x}?
How far away is {x}?
How many people live in {x}?
Where is {x}?
When did people discover {x}?
Why is {x} important?
Why do people like {x}?
What is the best thing about {x}?
Write an essay about {x}.
Write a program about {x}.
Write a function for {x}.
Write code for {x}.
Write a Python program.
Write a SQL query.
Give me a list of facts about {x}.
Give me three tips about {x}.
Translate {x} into French.
Translate this into German.
Summarize {x}.
Summarize this text.
Compare {x} and {x}.
What is the difference between {x} and {x}?
What is the meaning of {x}?
What is the weather today?
What time is it?
What day is today?
What is the news today?
Is {x} good or bad?
Can you help me with {x}?
Can you explain {x}?
Should I buy {x}?
Describe {x}.
Define {x}.
Which is better, {x} or {x}?
""")
UNKNOWN_REPLIES = [
    "I do not know that. I am a very small model: I tell short stories and do small sums.",
    "I am sorry, I do not know that. I can only tell short stories and do small sums.",
    "That is too hard for me. But I can tell you a short story or do a small sum.",
]
TOO_BIG_REPLIES = ["That is too hard for me. I only know sums with numbers up to 99."]

SYSTEM_PROMPTS = lines("""
You are a helpful assistant.
You are a helpful assistant. Answer briefly.
You are a friendly storyteller.
You are a helpful and honest assistant.
You tell stories for children.
Be brief.
Be kind and polite.
Answer in English.
You are a storyteller who loves animals.
You are a math teacher.
You are a helpful AI assistant.
You are a chatbot. Be concise and helpful.
Answer the question of the user.
You are a pirate.
Today is Monday.
""")
