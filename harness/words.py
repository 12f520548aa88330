"""Common short English words: with a leading space, each is one token in the vocabularies in use today."""

WORDS = tuple(
    """
able about above across act add after again age ago air all almost alone along already also always among amount animal
answer any appear apple area arm around art ask author away baby back bad ball bank bar base beat beautiful bed before
began begin behind being below best better between big bird black blood blue board boat body bone book born both
bottom box boy break bring broad brother brought brown build building burn business but buy call came camp can capital
captain car card care carry case cat catch cause cell cent center century certain chair chance change character charge
check child choose circle city claim class clean clear climb clock close cloth cloud coast coat cold color column come
common company complete condition consider contain continue control cook cool copy corn corner correct cost cotton
could count country course cover cow create cross crowd cry current cut dance dark day dead deal death decide deep
degree depend describe desert design develop die difference difficult direct discuss distance division doctor dog door
double down draw dream dress drink drive drop dry during each ear early earth ease east eat edge effect egg eight
either electric element else end enemy energy engine enough enter equal especially even evening event ever every exact
example except excite exercise expect experience experiment eye face fact fair fall family famous far farm fast father
favor fear feed feel feet fell felt few field fight figure fill final find fine finger finish fire first fish fit five
flat floor flow flower fly follow food foot force foreign forest form forward found four fraction free fresh friend
from front fruit full fun game garden gas gather gave general gentle get girl give glad glass gold gone good got
govern grand grass gray great green grew ground group grow guess guide gun had hair half hand happen happy hard hat
have head hear heart heat heavy held help her here high hill his history hit hold hole home hope horse hot hour house
how huge human hundred hunt hurry ice idea imagine inch include indicate industry insect instant instrument interest
invent iron island job join joy jump just keep kept key kill kind king knew know lady lake land language large last
late laugh law lay lead learn least leave led left leg length less letter level lie life lift light like line liquid
list listen little live log lone long look lost lot loud love low machine made magnet main major make man many map
mark market mass master match material matter may mean meant measure meat meet melody men metal method middle might
mile milk million mind mine minute miss mix modern molecule moment money month moon more morning most mother motion
mount mountain mouth move much multiply music must name nation natural nature near necessary neck need neighbor never
new next night nine noise noon north nose note nothing notice noun now number object observe occur ocean off offer
office often oil old once one only open operate opposite order organ original other our out over own page paint pair
paper paragraph parent part particular party pass past path pattern pay people perhaps period person phrase pick
picture piece pitch place plain plan plane planet plant play please plural poem point poor populate port position
possible post pound power practice prepare present press pretty print probable problem process produce product
""".split()
)
